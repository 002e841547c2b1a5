"""The command line: finds the command, runs it, and turns failures into one clear message.

Exit codes: 0 done, 1 failed, 2 called wrongly, 130 interrupted, 141 the reader of what it prints is
gone. A command's module is imported only when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from maestrale import __version__
from maestrale.cli.echo import echo
from maestrale.cli.failures import explained
from maestrale.cli.process import EXIT_CODE, open_standard_handles, raise_on_ctrl_c
from maestrale.errors import MaestraleError, SettingsError

# name → (module:command, line in the help)
COMMANDS = {
    "serve": (
        "maestrale.cli.serve:command",
        "Serve a chat API that OpenAI's and Mistral's clients accept.",
    ),
    "chat": ("maestrale.cli.chat:command", "Talk to a model in the terminal."),
    "verify": (
        "maestrale.cli.verify:command",
        "Prove that a chat API works: run the Postman collection.",
    ),
    "bench": ("maestrale.cli.bench:command", "Put load on a chat API and measure what it gives."),
    "doctor": (
        "maestrale.cli.doctor:command",
        "Tell what a machine has and lacks, each with its remedy.",
    ),
    "create": ("maestrale.cli.create:command", "Make a cloud machine that serves."),
    "plan": ("maestrale.cli.plan:command", "Tell what fits on a GPU or here, before fetching."),
    "pull": ("maestrale.cli.pull:command", "Fetch a model from the Hugging Face hub."),
    "models": ("maestrale.cli.models:command", "List, show and remove the models on the disk."),
    "ps": ("maestrale.cli.ps:command", "Show the models of a running server."),
    "render": ("maestrale.cli.render:command", "Show the exact prompt and token ids of a request."),
    "setup": (
        "maestrale.cli.setup:command",
        "Set up a machine: driver, Docker, container toolkit.",
    ),
    "tune": ("maestrale.cli.tune:command", "Measure which engine settings are fastest here."),
    "service": (
        "maestrale.cli.service:command",
        "Let systemd keep it running, from boot on.",
    ),
    "keys": ("maestrale.cli.keys:command", "Make, list, rotate and revoke API keys."),
    "usage": ("maestrale.cli.usage:command", "Show who used what, by key, model and day."),
    "version": (
        "maestrale.cli.version:command",
        "Show the versions of maestrale and what it runs on.",
    ),
}


READER_GONE = 128 + signal.SIGPIPE  # what a shell tells of programs that SIGPIPE ends
SERVE = "serve"  # has its own signal handlers from the moment there is something to end


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run or asked for their help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        if cmd_name != SERVE:
            raise_on_ctrl_c()
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # who read the output has seen enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return READER_GONE

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="'maestrale COMMAND --help' tells more of each.",
)
@click.version_option(__version__, prog_name="maestrale", message="%(prog)s %(version)s")
def group() -> None:
    """Run your own Mistral chat API."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    # Of the library that numpy has for large matrices, and nothing here needs: its threads, one for
    # each core in every process, wait actively at first, and a start takes a fifth longer.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    open_standard_handles()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; whatever fails ends in one message."""
    debug = bool(os.environ.get("MAESTRALE_DEBUG"))
    try:
        code = group.main(arguments, prog_name="maestrale", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.Abort:  # also click's form of KeyboardInterrupt
        return EXIT_CODE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MaestraleError as error:
        if debug:
            raise
        echo(f"maestrale: {error}", err=True)
        return 2 if isinstance(error, SettingsError) else 1
    except Exception as error:
        if debug:
            raise
        if meaning := explained(error):
            echo(f"maestrale: {meaning}", err=True)
            return 1
        echo(
            f"maestrale: something unforeseen went wrong: {type(error).__name__}: {error}\n"
            "This is a fault in maestrale. With MAESTRALE_DEBUG=1 set it shows where it arose.",
            err=True,
        )
        return 1

"""`maestrale chat`: talk to a model in the terminal."""

from __future__ import annotations

import os
import sys

import click

from maestrale.cli.api_key import api_key_options
from maestrale.cli.parameters import FiniteRange
from maestrale.config.paths import default_history_file

DEFAULT_URL = "http://127.0.0.1:8000"


@click.command("chat", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url", default=DEFAULT_URL)
@api_key_options
@click.option("--model", help="Model to ask. Default: the first that the server lists.")
@click.option("-m", "--message", help="Ask this only, and leave; what is piped in is added.")
@click.option("--system", help="What the model shall be (/system).")
@click.option(
    "--json",
    "schema",
    metavar="SCHEMA|any",
    help="Answers in JSON: a schema, a file with one, or 'any' (/json).",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="The same answers again (/seed).")
@click.option("--temperature", type=FiniteRange(0, 2), help="0 to 2 (/temperature).")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer (/max)."
)
@click.option("--no-history", is_flag=True, help="Keep no file of what was typed.")
def command(
    url: str,
    api_key: str | None,
    model: str | None,
    message: str | None,
    system: str | None,
    schema: str | None,
    seed: int | None,
    temperature: float | None,
    max_tokens: int | None,
    no_history: bool,
) -> int:
    """Talk to the model at URL (default: http://127.0.0.1:8000).

    Answers appear as they come. Ctrl-C stops an answer, /help lists the commands. Each line of
    a pipe is a message or a command, too; then only the answers go to stdout, and the first
    error ends it with exit code 1.
    """
    from maestrale.terminal.commands import chosen_model
    from maestrale.terminal.conversation import TerminalConversation, read_schema
    from maestrale.terminal.screen import Screen
    from maestrale.terminal.server import ChatServer
    from maestrale.terminal.session import ChatSession

    wanted = None
    if schema is not None:
        wanted = {} if schema.strip() == "any" else read_schema(schema)
    server = ChatServer(url, api_key)
    screen = Screen()
    try:
        models = server.models(screen.waiting)
        screen.waited()
        conversation = TerminalConversation(
            model=chosen_model(model, models) if model is not None else models[0],
            system=system,
            schema=wanted,
            seed=seed,
            temperature=temperature,
            max_tokens=max_tokens,
        )
        session = ChatSession(server, conversation, models, screen)
        if message is None:
            return session.talk(None if no_history else default_history_file())
        piped = "" if screen.typed else sys.stdin.read().strip()
        return 0 if session.ask("\n\n".join(filter(None, (message, piped)))) else 1
    except BrokenPipeError:  # who read the answers is gone: that's no failure of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        server.close()

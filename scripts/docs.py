"""Write the pages that are generated, in docs/reference, and the site. See scripts/docs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from inspect import cleandoc
from itertools import groupby
from pathlib import Path

import click

from maestrale.cli.main import COMMANDS, group
from maestrale.cli.serve import shown_default, takes_no
from maestrale.config import settings as config

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"

INTRODUCTION = """\
# Settings of `maestrale serve`

<!-- Written by scripts/docs from src/maestrale/config/settings.py; don't edit. -->

A setting can come from four places. The first that has it wins:

1. a flag: `--max-model-len 2048`
2. an environment variable: `MAESTRALE_MAX_MODEL_LEN=2048` (set but empty counts as not set)
3. the file named by `--config` or `MAESTRALE_CONFIG`; without one, `maestrale.toml` in the working
   folder, and then your own, `~/.config/maestrale/maestrale.toml` (`$XDG_CONFIG_HOME`):

   ```toml
   [serve]
   max_model_len = 2048
   ```
4. the default

The name is the same in all of them: `--max-model-len`, `MAESTRALE_MAX_MODEL_LEN`,
`max_model_len`. Where vLLM has such a flag, it has vLLM's name.
A wrong value or an unknown name is an error that names it; nothing is ignored. `serve` says which
files it read. Who reaches the server, and where it reports to (keys, `host`, `no_auth`, origins and
hosts, TLS, `ray_address`, `otlp_traces_endpoint`, `log_prompts`), may not come from the
`maestrale.toml` of a folder that one happens to stand in: name that file, or set it in your own.

Settings that are on or off are `--deterministic` and `--no-deterministic` as flags, `true` and
`false` elsewhere. Those that take several values can be repeated as flags or given with commas;
in the file they are lists. Sizes are bytes or `512MiB`, `2GiB`.

`MAESTRALE_DEBUG=1` shows where an error arose (a traceback); it is not a setting of the server.
`MAESTRALE_APT=yes` lets the launcher install what it lacks with apt-get, as root on Debian and
Ubuntu; else it asks, and without a terminal it only says what to install.
"""


def settings_page() -> str:
    parts = [INTRODUCTION]
    fields = config.fields().values()
    for title, members in groupby(fields, key=lambda field: field.metadata["group"]):
        parts.append(f"\n## {title}\n\n| flag | default | what it does |\n|---|---|---|\n")
        parts += [row(field) for field in members]
    return "".join(parts)


def row(field: config.Field) -> str:
    default = shown_default(field) or ("off" if config.field_type(field.name) is bool else "")
    name = config.flag(field.name)
    flag = f"--[no-]{name[2:]}" if takes_no(field) else name
    metavar = f" {field.metadata['metavar']}" if field.metadata["metavar"] else ""
    text = f"{field.metadata['help']}{allowed(field)}".replace("|", "\\|")
    return f"| `{flag}{metavar}` | {default} | {text} |\n"


def allowed(field: config.Field) -> str:
    rules = field.metadata["rules"]
    if rules.get("choices"):
        return f" One of {', '.join(rules['choices'])}."
    low, high = rules.get("minimum"), rules.get("maximum")
    if low is not None and high is not None:
        return f" From {low} to {high}."
    if rules.get("size"):
        low = f"{low >> 20}MiB" if low >= 1 << 20 else f"{low >> 10}KiB"
    return f" At least {low}." if low else ""


COMMANDS_INTRODUCTION = """\
# Commands

<!-- Written by scripts/docs from src/maestrale/cli; don't edit. -->

`maestrale COMMAND --help` tells the same. In a checkout it is `./maestrale`.
"""


def commands_page() -> str:
    context = click.Context(group, info_name="maestrale")
    parts = [COMMANDS_INTRODUCTION]
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        parts += command_section(command, context, name)
    return "".join(parts)


def command_section(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, parent, info_name=name)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"\n## {context.command_path}\n\n{cleandoc(command.help or '')}\n"
    yield f"\n```\n{usage}\n```\n"
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            yield from command_section(below, context, each)
        return
    if name == "serve":
        yield "\nIts options are the [settings](settings.md).\n"
        return
    rows = [option_row(each, context) for each in command.params if isinstance(each, click.Option)]
    if rows:
        yield "\n| option | what it does |\n|---|---|\n"
        yield from rows


def option_row(option: click.Option, context: click.Context) -> str:
    found = option.get_help_record(context)
    if found is None:
        return ""
    cells = (f"`{found[0]}`", found[1])
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |\n"


PAGES: dict[str, Callable[[], str]] = {"settings": settings_page, "commands": commands_page}


def write() -> None:
    for name, page in PAGES.items():
        (REFERENCE / f"{name}.md").write_text(page())


def check() -> str | None:
    """What is wrong, for the terminal."""
    for name, page in PAGES.items():
        path = REFERENCE / f"{name}.md"
        if not path.exists() or path.read_text() != page():
            return f"docs/reference/{name}.md is not current: run scripts/docs"
    return None


def site(folder: Path) -> int:
    """The exit code of Sphinx, for which every warning is an error."""
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--fresh-env", "--jobs", "auto"]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(folder)]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            write()
        case ["--check"]:
            sys.exit(check())
        case ["site"]:
            write()
            sys.exit(site(ROOT / "site"))
        case ["site", to]:
            sys.exit(site(Path(to)))
        case _:
            sys.exit("usage: scripts/docs [--check | site [FOLDER]]")

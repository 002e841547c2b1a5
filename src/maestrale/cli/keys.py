"""`maestrale keys`: make, list and revoke API keys. A running server takes changes up by itself."""

from __future__ import annotations

import json
from pathlib import Path

import click

from maestrale import keys
from maestrale.cli.echo import echo
from maestrale.config.paths import default_key_file

FILE = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The key file. Default: that of 'maestrale serve'.",
)


@click.group("keys")
def command() -> None:
    """Make, list and revoke API keys.

    A running server notices within a second. Keys are stored as digests: a key is shown once,
    when it is made.
    """


@command.command()
@click.argument("name")
@click.option(
    "--requests-per-minute", type=click.IntRange(min=1), metavar="N", help="Default: no limit."
)
@click.option(
    "--tokens-per-minute",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of prompts and answers. Default: no limit.",
)
@click.option("--operator", is_flag=True, help="It may also load and unload models.")
@FILE
def add(
    name: str,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    operator: bool,
    file: Path | None,
) -> None:
    """Make a key and show it, this once."""
    secret = keys.add_key(
        _path(file),
        name,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        operator=operator,
    )
    echo("This key is shown only now:", err=True)
    echo(secret)


@command.command("list")
@FILE
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(file: Path | None, as_json: bool) -> None:
    """Show the names of all keys, how they begin, and their limits."""
    path = _path(file)
    known = keys.read_keys(path) if path.exists() else []
    rows = [
        {
            "name": key.name,
            "prefix": key.prefix,
            "created": key.created,
            "requests_per_minute": key.requests_per_minute,
            "tokens_per_minute": key.tokens_per_minute,
            "operator": key.operator,
        }
        for key in known
    ]
    if as_json:
        echo(json.dumps(rows))
        return
    if not rows:
        echo(f"No keys in {path}. Make one: maestrale keys add NAME")
        return
    width = max(len(key.name) for key in known)
    for key in known:
        limits = [
            f"{limit} {unit}/min"
            for limit, unit in (
                (key.requests_per_minute, "requests"),
                (key.tokens_per_minute, "tokens"),
            )
            if limit is not None
        ]
        shown = ", ".join(limits) or "no limits"
        if key.operator:
            shown += ", operator"
        echo(f"{key.name:{width}}  {key.prefix}…  {key.created}  {shown}")


@command.command()
@click.argument("name")
@FILE
def revoke(name: str, file: Path | None) -> None:
    """Take a key back: the server refuses it from then on."""
    keys.revoke_key(_path(file), name)
    echo(f"Revoked {name}.")


def _path(file: Path | None) -> Path:
    return file if file is not None else default_key_file()

"""`maestrale keys`: make, list, rotate and revoke API keys.

A running server takes changes up by itself.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from maestrale import keys
from maestrale.cli.echo import echo
from maestrale.config.paths import default_key_file
from maestrale.config.settings import flag
from maestrale.config.values import parse_duration

MOST_OVERLAP = 366 * 86400.0
FILE = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The key file. Default: that of 'maestrale serve'.",
)


@click.group("keys")
def command() -> None:
    """Make, list, rotate and revoke API keys.

    A running server notices within a second. Keys are stored as digests: a key is shown once,
    when it is made.
    """


def limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for each limit that a key may have."""
    for name in reversed(keys.LIMITS):
        of = "Tokens of prompts and answers. " if name.startswith("tokens") else ""
        help_ = f"{of}Default: no limit."
        decorate = click.option(flag(name), type=click.IntRange(min=1), metavar="N", help=help_)
        command = decorate(command)
    return command


class Moment(click.ParamType[str]):
    """A moment: ahead by a time such as 30d, a day, or in ISO 8601."""

    name = "moment"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """As a key file has it. Raises: click.BadParameter."""
        try:
            seconds = parse_duration(value)
        except ValueError:
            seconds = math.inf
        try:
            if seconds is None:
                return ""
            moment = keys.moment_of(value) if seconds == math.inf else time.time() + seconds
            told = keys.spell_moment(moment)
            keys.moment_of(told)  # as the key file is read
            return told
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time such as 30d, nor a day such as 2030-12-31.", param, ctx
            )


class Span(click.ParamType[float]):
    """A time such as 30m, 24h or 7d, in seconds."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Raises: click.BadParameter."""
        try:
            seconds = parse_duration(str(value))
        except ValueError:
            seconds = None
        if seconds is None or seconds > MOST_OVERLAP:
            self.fail(f"{value!r} is no time such as 30m, 24h or 7d.", param, ctx)
        return seconds


@command.command()
@click.argument("name")
@limits
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="It may ask this model; can be given several times. Default: all.",
)
@click.option(
    "--expires",
    type=Moment(),
    metavar="WHEN",
    help="A time from now (30d), a day (2030-12-31) or a moment, UTC. Default: never.",
)
@click.option(
    "--operator",
    is_flag=True,
    help="It may also load and unload models, and see what all keys have used.",
)
@FILE
def add(name: str, expires: str | None, file: Path | None, **terms: Any) -> None:
    """Make a key and show it, this once. Days and months are those of UTC."""
    _show(keys.add_key(_path(file), name, expires=expires or "", **terms))


@command.command()
@click.argument("name")
@click.option(
    "--overlap",
    type=Span(),
    default="24h",
    show_default=True,
    metavar="TIME",
    help="How long what it was before stays valid; 0: no longer.",
)
@FILE
def rotate(name: str, overlap: float, file: Path | None) -> None:
    """Make another secret for a key and show it, this once; limits and usage go on."""
    secret, until = keys.rotate_key(_path(file), name, overlap)
    echo(f"What {name} was before is valid until {until}.", err=True)
    _show(secret)


@command.command("list")
@FILE
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(file: Path | None, as_json: bool) -> None:
    """Show the names of all keys, how they begin, and their limits."""
    path = _path(file)
    known = keys.read_keys(path) if path.exists() else []
    if as_json:
        echo(json.dumps([_fields(key) for key in known]))
        return
    if not known:
        echo(f"No keys in {path}. Make one: maestrale keys add NAME")
        return
    width = max(len(key.name) for key in known)
    for key in known:
        echo(f"{key.name:{width}}  {key.prefix}…  {key.created}  {_terms(key)}")


@command.command()
@click.argument("name")
@FILE
def revoke(name: str, file: Path | None) -> None:
    """Take a key back: the server refuses it from then on."""
    keys.revoke_key(_path(file), name)
    echo(f"Revoked {name}.")


def _show(secret: str) -> None:
    echo("This key is shown only now:", err=True)
    echo(secret)


def _fields(key: keys.Key) -> dict[str, Any]:
    """What of a key is told: not its digests."""
    return {
        "name": key.name,
        "prefix": key.prefix,
        "created": key.created,
        "expires": key.expires or None,
        **{name: getattr(key, name) for name in keys.LIMITS},
        "models": list(key.models) or None,
        "operator": key.operator,
        "replaced": [{"prefix": each.prefix, "until": each.until} for each in key.replaced],
    }


def _terms(key: keys.Key) -> str:
    """Limits and the like in a few words."""
    short = {"minute": "min", "day": "day", "month": "month"}
    told = []
    for name in keys.LIMITS:
        what, _, window = name.partition("_per_")
        if getattr(key, name) is not None:
            told.append(f"{getattr(key, name)} {what}/{short[window]}")
    told = told or ["no limits"]
    if key.models:
        told.append(f"for {' '.join(key.models)}")
    if key.expires:
        over = keys.moment_of(key.expires) <= time.time()
        told.append(f"{'expired' if over else 'until'} {key.expires}")
    for each in key.replaced:
        if keys.moment_of(each.until) > time.time():
            told.append(f"{each.prefix}… until {each.until}")
    if key.operator:
        told.append("operator")
    return ", ".join(told)


def _path(file: Path | None) -> Path:
    return file if file is not None else default_key_file()

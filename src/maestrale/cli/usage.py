"""`maestrale usage`: who used what, by key, model and day, as a table, CSV or JSON."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import click
from msgspec import structs

from maestrale.cli.echo import echo
from maestrale.config.paths import default_key_file
from maestrale.errors import DatabaseUnusable, MaestraleError
from maestrale.usage import FIGURES, GROUPS, UsageFile, UsageRow, day_of, days_before, parse_day

USUAL_DAYS = 30
HEADINGS = {
    "requests": "requests",
    "errors": "errors",
    "prompt_tokens": "prompt",
    "cached_tokens": "cached",
    "completion_tokens": "completion",
    "seconds": "seconds",
}


class Day(click.ParamType[str]):
    """A day as in 2030-12-31."""

    name = "day"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Raises: click.BadParameter."""
        try:
            return parse_day(value)
        except ValueError:
            self.fail(f"{value!r} is no day such as 2030-12-31.", param, ctx)


class Groups(click.ParamType[tuple[str, ...]]):
    """Words of GROUPS with commas between them."""

    name = "groups"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Raises: click.BadParameter."""
        given = tuple(dict.fromkeys(each.strip() for each in value.split(",")))
        if not set(given) <= set(GROUPS):
            self.fail(f"{value!r} is no list of {', '.join(GROUPS)}.", param, ctx)
        if {"day", "month"} <= set(given):
            self.fail("a sum is of a day or of a month, not of both.", param, ctx)
        return given


@click.command("usage")
@click.option(
    "--by",
    type=Groups(),
    default="day,key,model",
    show_default=True,
    metavar="LIST",
    help="What each line is of: some of day or month, key, model.",
)
@click.option(
    "--since", type=Day(), metavar="DAY", help="The first day. Default: 29 days before the last."
)
@click.option("--until", type=Day(), metavar="DAY", help="The last day. Default: today.")
@click.option("--key", "keys", multiple=True, metavar="NAME", help="Of this key alone.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Of this model alone.")
@click.option("--csv", "as_csv", is_flag=True, help="As CSV.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file of usage. Default: that of 'maestrale serve'.",
)
def command(
    by: tuple[str, ...],
    since: str | None,
    until: str | None,
    keys: tuple[str, ...],
    models: tuple[str, ...],
    as_csv: bool,
    as_json: bool,
    file: Path | None,
) -> None:
    """Show who used what: requests, tokens and seconds by key, model and day.

    Days are those of UTC. A running server counts each request before its answer ends.
    """
    if as_csv and as_json:
        raise click.UsageError("Give --csv or --json, one of them.")
    path = file if file is not None else default_key_file().with_name("usage.db")
    last = until or day_of(time.time())
    first = since or days_before(last, USUAL_DAYS - 1)
    rows = _rows(path, by, first, last, keys, models)
    if as_json:
        echo(json.dumps([_fields(row, by) for row in rows]))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([*by, *FIGURES])
        writer.writerows([*_fields(row, by).values()] for row in rows)
    elif rows:
        _table(rows, by)
    else:
        echo(f"Nothing was used from {first} to {last}, by {path}.")


def _rows(path: Path, by: tuple[str, ...], *asked: Any) -> list[UsageRow]:
    """Raises: MaestraleError."""
    first, last, keys, models = asked
    if not path.exists():
        raise MaestraleError(
            f"There is no file {path}: no server has counted there. Name that of its "
            "--usage-file, or usage.db beside its key file."
        )
    usage = UsageFile(path)
    try:
        return usage.read(by, first, last, keys=keys, models=models)
    except DatabaseUnusable as error:
        raise MaestraleError(f"The usage in {path} can't be read: {error}.") from error
    finally:
        usage.close()


def _fields(row: UsageRow, by: tuple[str, ...]) -> dict[str, Any]:
    fields = structs.asdict(row)
    names = {name: fields["day" if name == "month" else name] for name in by}
    figures = {name: fields[name] for name in FIGURES}
    return {**names, **figures, "seconds": round(row.seconds, 3)}


def _table(rows: list[UsageRow], by: tuple[str, ...]) -> None:
    lines = [[*by, *HEADINGS.values()]]
    for row in rows:
        fields = _fields(row, by)
        lines.append([*(fields[name] for name in by), *_figures(fields)])
    if len(rows) > 1:
        sums = {name: sum(getattr(row, name) for row in rows) for name in FIGURES}
        lines.append([*("all" if name == by[0] else "" for name in by), *_figures(sums)])
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    for line in lines:
        left = [f"{text:<{width}}" for text, width in zip(line, widths, strict=True)][: len(by)]
        right = [f"{text:>{width}}" for text, width in zip(line, widths, strict=True)][len(by) :]
        echo("  ".join([*left, *right]))


def _figures(fields: dict[str, Any]) -> list[str]:
    return [
        f"{fields[name]:,.1f}" if name == "seconds" else f"{fields[name]:,}" for name in FIGURES
    ]

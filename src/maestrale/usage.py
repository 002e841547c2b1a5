"""Who used what: requests, tokens and seconds by key, model and day, in a file of SQLite.

Numbers only: nothing of what was asked or answered. Days are those of UTC.
"""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from maestrale.database import Database, Layout

GROUPS = ("key", "model", "day", "month")
NO_KEY = "-"
"""Whose the requests are where no key is asked for."""
NO_MODEL = "-"
"""Which model requests asked that were refused before one was found."""
FIGURES = (
    *("requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds"),
)
LAYOUT = Layout(
    steps=(
        """
CREATE TABLE usage (
    day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, errors INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (day, key, model)
) WITHOUT ROWID
""",
    ),
    setting="--usage-file",
    # Each answer waits for it, and a loss of power costs no more than the last counts.
    synchronous="NORMAL",
)
ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
requests = requests + excluded.requests, errors = errors + excluded.errors,
prompt_tokens = prompt_tokens + excluded.prompt_tokens,
cached_tokens = cached_tokens + excluded.cached_tokens,
completion_tokens = completion_tokens + excluded.completion_tokens,
seconds = seconds + excluded.seconds
"""
COLUMNS = {"month": "substr(day, 1, 7)"}


class UsageRow(Struct, frozen=True, kw_only=True):
    """What was used of one model by one key on one day (as in 2030-12-31).

    `errors`: requests among them that got an error. `prompt_tokens`: those found in the cache
    included, which `cached_tokens` are. `seconds`: from a request's first step in the engine to its
    last, whatever else ran beside it.
    """

    day: str = ""
    key: str = NO_KEY
    model: str = NO_MODEL
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Those of prompts and answers."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def empty(self) -> bool:
        """Whether nothing was used."""
        return not any(getattr(self, name) for name in FIGURES)


def day_of(moment: float) -> str:
    """The day of a Unix time."""
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).date().isoformat()


def parse_day(text: str) -> str:
    """A day as in 2030-12-31. Raises: ValueError."""
    return datetime.date.fromisoformat(text).isoformat()


def days_before(day: str, days: int) -> str:
    """The day so many days before this one."""
    return (datetime.date.fromisoformat(day) - datetime.timedelta(days=days)).isoformat()


def merged(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """The sums for each day, key and model."""
    sums: dict[tuple[str, str, str], UsageRow] = {}
    for row in rows:
        place = (row.day, row.key, row.model)
        known = sums.get(place)
        sums[place] = row if known is None else _plus(known, row)
    return list(sums.values())


def beyond(row: UsageRow, counted: int) -> UsageRow:
    """What is to be counted of an answer of which so many tokens were counted already, with its
    request and its prompt.
    """
    more = max(0, row.completion_tokens - counted)
    return structs.replace(
        row,
        **dict.fromkeys(("requests", "errors", "prompt_tokens", "cached_tokens"), 0),
        completion_tokens=more,
        seconds=row.seconds if more else 0.0,
    )


def _plus(one: UsageRow, other: UsageRow) -> UsageRow:
    return structs.replace(
        one, **{name: getattr(one, name) + getattr(other, name) for name in FIGURES}
    )


class UsageFile:
    """The file. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path, LAYOUT)
        self.path = path

    def add(self, rows: Sequence[UsageRow], before: str = "") -> list[UsageRow]:
        """Add what was used, all of it or nothing.

        What there was for each key and day before, from the month `before` on (as in 2030-12).
        Raises: DatabaseUnusable.
        """

        def work(db: sqlite3.Connection) -> list[UsageRow]:
            known = _read(db, ("day", "key"), f"{before}-01", "9", (), ()) if before else []
            db.executemany(ADD, map(structs.astuple, rows))
            return known

        return self._database.write(work)

    def read(
        self,
        by: Sequence[str],
        first: str = "",
        last: str = "9",
        *,
        keys: Sequence[str] = (),
        models: Sequence[str] = (),
    ) -> list[UsageRow]:
        """The sums of the days from `first` to `last`, by the `GROUPS` that are named, in order.

        `keys` and `models`: of these alone. Raises: DatabaseUnusable.
        """
        return self._database.read(lambda db: _read(db, by, first, last, keys, models))

    def close(self) -> None:
        """Close the file; what is added or read later opens it again."""
        self._database.close()


def _read(
    db: sqlite3.Connection,
    by: Sequence[str],
    first: str,
    last: str,
    keys: Sequence[str],
    models: Sequence[str],
) -> list[UsageRow]:
    columns = [COLUMNS.get(name, name) for name in by if name in GROUPS]
    wanted, given = ["day BETWEEN ? AND ?"], [first, last]
    for name, values in (("key", keys), ("model", models)):
        if values:
            wanted.append(f"{name} IN ({', '.join('?' * len(values))})")
            given += values
    sums = ", ".join(f"total({name})" for name in FIGURES)
    grouped = ", ".join(columns) or "NULL"
    found = db.execute(
        f"SELECT {', '.join([*columns, sums])} FROM usage "  # noqa: S608 - words of ours
        f"WHERE {' AND '.join(wanted)} GROUP BY {grouped} ORDER BY {grouped}",
        given,
    )
    rows = []
    for values in found:
        fields: dict[str, Any] = dict.fromkeys(("day", "key", "model"), "")
        for name, value in zip(by, values, strict=False):
            fields["day" if name == "month" else name] = value
        for name, value in zip(FIGURES, values[len(columns) :], strict=True):
            fields[name] = value if name == "seconds" else int(value)
        rows.append(UsageRow(**fields))
    return rows

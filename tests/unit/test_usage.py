"""The file of usage, and what the command line shows of it."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from maestrale.cli.usage import command
from maestrale.errors import MaestraleError
from maestrale.usage import UsageFile, UsageRow, day_of, merged

ROWS = [
    UsageRow(day="2030-01-30", key="alice", model="a", requests=1, prompt_tokens=5, seconds=0.5),
    UsageRow(day="2030-01-31", key="alice", model="a", requests=2, completion_tokens=7),
    UsageRow(day="2030-02-01", key="alice", model="b", requests=1, errors=1, cached_tokens=1),
    UsageRow(day="2030-02-01", key="bob", model="a", requests=4, prompt_tokens=3, seconds=1.5),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    usage = UsageFile(path)
    usage.add(ROWS)
    usage.close()
    return path


def test_sums_are_by_day_key_and_model(file: Path) -> None:
    usage = UsageFile(file)
    usage.add(ROWS[3:])
    rows = usage.read(["day", "key", "model"])
    doubled = UsageRow(
        day="2030-02-01", key="bob", model="a", requests=8, prompt_tokens=6, seconds=3.0
    )
    assert rows == [*ROWS[:3], doubled]


def test_sums_by_less(file: Path) -> None:
    usage = UsageFile(file)
    by_key = usage.read(["key"])
    assert [(row.key, row.requests, row.tokens, row.day) for row in by_key] == [
        ("alice", 4, 12, ""),
        ("bob", 4, 3, ""),
    ]
    by_month = usage.read(["month", "model"])
    assert [(row.day, row.model, row.requests) for row in by_month] == [
        ("2030-01", "a", 3),
        ("2030-02", "a", 4),
        ("2030-02", "b", 1),
    ]


def test_a_span_some_keys_and_some_models(file: Path) -> None:
    usage = UsageFile(file)
    assert usage.read(["day", "key", "model"], "2030-01-31", "2030-02-01", keys=["alice"]) == [
        *ROWS[1:3]
    ]
    assert usage.read(["day", "key", "model"], models=["b", "x"]) == [ROWS[2]]
    assert usage.read(["key"], keys=["' OR 1 --"]) == []


def test_what_there_was_before_is_told_when_more_is_added(file: Path) -> None:
    usage = UsageFile(file)
    known = usage.add(ROWS[3:], "2030-02")
    assert [(row.day, row.key, row.requests) for row in known] == [
        ("2030-02-01", "alice", 1),
        ("2030-02-01", "bob", 4),
    ]


def test_rows_of_one_place_are_one() -> None:
    assert merged([ROWS[0], ROWS[3], ROWS[0]])[0].requests == 2
    assert len(merged(ROWS * 3)) == 4


def shown(file: Path, *words: str) -> str:
    done = CliRunner().invoke(command, [*words, "--file", str(file)])
    assert done.exit_code == 0, done.output
    return done.stdout


SPAN = ("--since", "2030-01-01", "--until", "2030-12-31")


def test_the_table(file: Path) -> None:
    lines = shown(file, *SPAN, "--by", "key").splitlines()
    assert [line.split() for line in lines] == [
        ["key", "requests", "errors", "prompt", "cached", "completion", "seconds"],
        ["alice", "4", "1", "5", "1", "7", "0.5"],
        ["bob", "4", "0", "3", "0", "0", "1.5"],
        ["all", "8", "1", "8", "1", "7", "2.0"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_csv_and_json(file: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(shown(file, *SPAN, "--csv"))))
    assert list(rows[0])[:4] == ["day", "key", "model", "requests"]
    assert [row["requests"] for row in rows] == ["1", "2", "1", "4"]
    found = json.loads(shown(file, *SPAN, "--json", "--by", "month", "--model", "a"))
    assert [(row["month"], row["requests"]) for row in found] == [("2030-01", 3), ("2030-02", 4)]


def test_the_last_thirty_days_are_shown(file: Path) -> None:
    assert "Nothing was used" in shown(file)
    today = day_of(time.time())
    UsageFile(file).add([UsageRow(day=today, key="carol", requests=1)])
    assert today in shown(file)


def test_what_is_asked_wrongly(file: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    for words in (
        ["--by", "key,hour"],
        ["--by", "day,month"],
        ["--since", "x"],
        ["--csv", "--json"],
    ):
        assert runner.invoke(command, [*words, "--file", str(file)]).exit_code == 2
    done = runner.invoke(command, ["--file", str(tmp_path / "none.db")])
    assert isinstance(done.exception, MaestraleError)
    assert "no server has counted there" in str(done.exception)
    assert not (tmp_path / "none.db").exists()

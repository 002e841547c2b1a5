"""A file of SQLite: whose it is, how it grows up, and what becomes of one that can't be used."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maestrale import database as module
from maestrale.database import Database, Layout, connect
from maestrale.errors import DatabaseUnusable

FIRST = "CREATE TABLE words (word TEXT NOT NULL)"
SECOND = "ALTER TABLE words ADD COLUMN count INTEGER NOT NULL DEFAULT 1; CREATE TABLE more (x)"
LAYOUT = Layout(steps=(FIRST,), setting="--words-file")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "words.db"


def add(database: Database, word: str) -> None:
    database.write(lambda db: db.execute("INSERT INTO words (word) VALUES (?)", (word,)))


def words(database: Database) -> list[str]:
    return database.read(lambda db: [row[0] for row in db.execute("SELECT word FROM words")])


def test_it_is_for_its_user_only(file: Path) -> None:
    database = Database(file, LAYOUT)
    add(database, "one")
    beside = sorted(path.name for path in file.parent.iterdir())
    assert beside == ["words.db", "words.db-shm", "words.db-wal"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_transaction_is_done_whole_or_not_at_all(file: Path) -> None:
    database = Database(file, LAYOUT)

    def fail(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO words VALUES ('lost')")
        raise ValueError("changed its mind")

    with pytest.raises(ValueError, match="changed"):
        database.write(fail)
    add(database, "kept")
    assert words(database) == ["kept"]


def test_what_was_committed_outlives_the_process(file: Path) -> None:
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from test_database import Database, LAYOUT, add\n"
        "database = Database(Path(sys.argv[1]), LAYOUT)\n"
        "for n in range(100): add(database, str(n))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    here = str(Path(__file__).parent)
    ended = subprocess.run([sys.executable, "-c", script, file, here, *sys.path], check=False)
    assert ended.returncode == -9
    assert words(Database(file, LAYOUT)) == [str(n) for n in range(100)]


def test_readers_do_not_wait_for_a_writer(file: Path) -> None:
    writer, reader = Database(file, LAYOUT), Database(file, LAYOUT)
    add(writer, "one")

    def look(db: sqlite3.Connection) -> list[str]:
        db.execute("INSERT INTO words VALUES ('two')")
        return words(reader)

    assert writer.write(look) == ["one"]
    assert words(reader) == ["one", "two"]


def test_a_new_file_that_several_open_at_once(tmp_path: Path) -> None:
    """One open in a hundred fails where nobody tries again."""
    together = threading.Barrier(4)

    def opened(path: Path) -> None:
        together.wait()
        connect(path, LAYOUT).close()

    with ThreadPoolExecutor(4) as pool:
        for number in range(200):
            path = tmp_path / f"{number}.db"
            list(pool.map(opened, [path] * 4))


def test_an_old_layout_is_brought_up_to_date(file: Path) -> None:
    add(Database(file, LAYOUT), "old")
    newer = Layout(steps=(FIRST, SECOND), setting="--words-file")
    database = Database(file, newer)
    found = database.read(lambda db: db.execute("SELECT word, count FROM words").fetchall())
    assert found == [("old", 1)]
    database.read(lambda db: db.execute("SELECT * FROM more"))
    with pytest.raises(DatabaseUnusable, match=r"version 2, .* version 1; .* --words-file"):
        words(Database(file, LAYOUT))
    assert not list(file.parent.glob("*.broken-*"))


def test_an_update_that_fails_leaves_the_old_layout(file: Path) -> None:
    add(Database(file, LAYOUT), "old")
    wrong = Layout(steps=(FIRST, SECOND + "; CREATE NONSENSE"), setting="--words-file")
    with pytest.raises(DatabaseUnusable, match="syntax error"):
        words(Database(file, wrong))
    assert words(Database(file, LAYOUT)) == ["old"]


def overwrite(file: Path) -> None:
    file.write_bytes(b"no database" * 1000)


def damage(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * 4096)


@pytest.mark.parametrize("spoil", [overwrite, damage])
def test_a_broken_file_is_set_aside(
    file: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    database = Database(file, LAYOUT)
    add(database, "before")
    database.close()
    spoil(file)
    with caplog.at_level(logging.ERROR, "maestrale"):
        add(database, "after")
        add(database, "later")
    assert words(Database(file, LAYOUT)) == ["after", "later"]
    [aside] = [path for path in file.parent.glob("*.broken-*") if path.name.endswith("Z")]
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    [told] = caplog.messages
    assert str(file) in told
    assert aside.name in told


def test_the_second_who_meets_a_broken_file_leaves_the_new_one(file: Path) -> None:
    first, second = Database(file, LAYOUT), Database(file, LAYOUT)
    for each in (first, second):
        add(each, "before")
    damage(file)
    for each in (first, second):
        each.read(lambda db: db.execute("PRAGMA shrink_memory"))  # forget the pages that were read
    add(first, "new")
    add(second, "too")
    assert words(first) == ["new", "too"]
    assert len([path for path in file.parent.glob("*.broken-*") if path.name[-1] == "Z"]) == 1


def test_two_are_set_aside_within_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20261130T120000Z")
    database = Database(file, LAYOUT)
    for _ in range(3):
        database.close()
        file.parent.mkdir(exist_ok=True)
        overwrite(file)
        add(database, "new")
    asides = sorted(path.name.partition("Z")[2] for path in file.parent.glob("*.broken-*"))
    assert asides == ["", "-2", "-3"]


def test_a_full_disk(file: Path) -> None:
    database = Database(file, LAYOUT)
    add(database, "before")
    assert database._db is not None
    database._db.execute("PRAGMA max_page_count = 2")
    with pytest.raises(DatabaseUnusable, match="full"):
        add(database, "x" * 1_000_000)
    add(database, "after")  # opened anew
    assert words(database) == ["before", "after"]


def test_a_file_that_is_locked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    database = Database(file, LAYOUT)
    add(database, "one")
    database.close()
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnusable, match="locked"):
            add(database, "two")
        assert words(database) == ["one"]
        other.execute("ROLLBACK")
    add(database, "two")


WRONG: dict[str, Callable[[Path], None]] = {
    "directory": lambda file: file.mkdir(),
    "symbolic links|loop": lambda file: file.symlink_to("elsewhere"),
    "no file": lambda file: os.mkfifo(file),
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_is_no_file(file: Path, reason: str) -> None:
    file.parent.mkdir()
    WRONG[reason](file)
    with pytest.raises(DatabaseUnusable, match=f"(?i){reason}"):
        add(Database(file, LAYOUT), "one")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnusable, match=r"(?i)exists|not a directory"):
        add(Database(tmp_path / "file" / "words.db", LAYOUT), "one")

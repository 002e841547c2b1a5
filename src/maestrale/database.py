"""A file of SQLite that several processes may share: opened, kept to its user, mended.

It is made for this user only and written ahead (WAL), so that readers and a writer don't wait for
each other, and what was committed outlives the death of any process. A file of an older layout is
brought up to date. One that is broken is set aside under another name, and a new one begun.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from msgspec import Struct

from maestrale.errors import DatabaseUnusable

BUSY_SECONDS = 5.0  # that a writer waits for another one
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
BESIDE = ("", "-wal", "-shm", "-journal")  # what SQLite keeps of one database
_LOGGER = logging.getLogger("maestrale")
T = TypeVar("T")


class Layout(Struct, frozen=True, kw_only=True):
    """What is in the file. Its version is the number of `steps`, each of which makes the next
    version of the one before (a script of SQL; the first one makes a new file's tables).

    `pragmas` hold for each connection. `setting`: the flag with which another file is named.
    `synchronous`: NORMAL is enough for the death of any process, and a loss of power may take the
    last moments; FULL keeps them, too.
    """

    steps: tuple[str, ...]
    pragmas: tuple[str, ...] = ()
    setting: str
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"


class Database:
    """One file, opened when it is first needed and anew after a failure.

    For one thread at a time, which need not be always the same.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self._layout = layout
        self._db: sqlite3.Connection | None = None
        self._closing: weakref.finalize[[], Database] | None = None
        self._inode = 0  # of the file that was opened last

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` gives, in a transaction of its own that keeps other writers out.

        Where the file turns out to be broken, the work is done on a new one.
        Raises: DatabaseUnusable, and nothing of it was written.
        """
        return self._work("IMMEDIATE", work)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` gives, all of it seen at one moment; writers go on. As `write` else."""
        return self._work("DEFERRED", work)

    def empty_log(self) -> bool:
        """Let nothing that was deleted stay in the log of writes. Whether that could be done: not
        while another process reads it.
        """
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                [busy, _, _] = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return not busy
        return False

    def close(self) -> None:
        """Close the file; the next work opens it again."""
        if self._closing is not None:
            with contextlib.suppress(sqlite3.Error):
                self._closing()
        self._db = self._closing = None

    def _work(self, kind: str, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            try:
                return self._transact(kind, work)
            except sqlite3.DatabaseError as error:
                if not _is_broken(error):
                    raise
                self.close()
                self._begin_anew(error)
                return self._transact(kind, work)
        except (sqlite3.Error, OSError) as error:
            self.close()  # the file may be another one by the next time
            raise DatabaseUnusable(_reason(error)) from error

    def _transact(self, kind: str, work: Callable[[sqlite3.Connection], T]) -> T:
        db = self._connected()
        with _transaction(db, kind):
            return work(db)

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            self._inode = _make(self.path)
            self._db = connect(self.path, self._layout)
            self._closing = weakref.finalize(self, self._db.close)  # or at the process's end
        return self._db

    def _begin_anew(self, error: sqlite3.Error) -> None:
        """Set the broken file aside, unless another process has done so. Raises: OSError."""
        folder = os.open(self.path.absolute().parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if self.path.exists() and self.path.stat().st_ino == self._inode:
                aside = _set_aside(self.path)
                _LOGGER.error(
                    "%s is broken (%s). It is kept as %s, and a new one is begun.",
                    *(self.path, error, aside.name),
                )
        finally:
            os.close(folder)


def connect(path: Path, layout: Layout) -> sqlite3.Connection:
    """A connection to the file, whose tables are made or brought up to date.

    Raises: sqlite3.Error.
    """
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        for pragma in layout.pragmas:
            db.execute(f"PRAGMA {pragma}")
        _write_ahead(db)
        db.execute(f"PRAGMA synchronous = {layout.synchronous}")
        db.execute("PRAGMA journal_size_limit = 16777216")
        if _version(db) != len(layout.steps):
            _bring_up_to_date(db, layout)
    except BaseException:
        db.close()
        raise
    return db


def _bring_up_to_date(db: sqlite3.Connection, layout: Layout) -> None:
    """Raises: sqlite3.Error, also for a file of a later version than is known here."""
    known = len(layout.steps)
    with _transaction(db, "IMMEDIATE"):
        version = _version(db)  # another process may have been faster
        if version > known:
            raise sqlite3.DatabaseError(
                f"it is of version {version}, and this program reads version {known}; move it "
                f"away, or name another with {layout.setting}"
            )
        for step in layout.steps[version:]:
            for statement in step.split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {known}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _make(path: Path) -> int:
    """The file, made where it isn't there, for this user only; its inode. Raises: OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is no file")
        os.fchmod(handle, 0o600)  # and SQLite gives its other files the same rights
        return found.st_ino
    finally:
        os.close(handle)


def _set_aside(path: Path) -> Path:
    """Give the file, and what SQLite keeps beside it, another name. Raises: OSError."""
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    number = 1
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{aside.name.partition('Z')[0]}Z-{number}")
    for ending in BESIDE:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{ending}").rename(f"{aside}{ending}")
    return aside


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection, kind: str) -> Iterator[None]:
    db.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch to WAL. Of several who open a new file at once one does it, and SQLite lets the others
    fail instead of waiting as for any other lock. Raises: sqlite3.Error.
    """
    ends = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > ends:
                raise
            time.sleep(0.01)


def _is_broken(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in BROKEN


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)

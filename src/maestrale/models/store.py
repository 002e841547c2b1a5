"""The folder of prepared models: each under its content's digest, made once, never half made."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from maestrale.errors import ModelError
from maestrale.files import replace_file
from maestrale.models.prepared import FORMAT_VERSION, damage, is_intact
from maestrale.models.room import full_message, is_full

logger = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]

_CHUNK = 1 << 22  # bytes
# Models that were prepared when the environment was made, as in the image. Never written to.
SHIPPED = Path(sys.prefix, "share/maestrale/models")


class _Stamp(msgspec.Struct, frozen=True):
    """What a file was when its digest was taken."""

    size: int
    modified: int  # nanoseconds
    inode: int
    digest: str


def digest_of(path: Path, store: Path, progress: Progress) -> str:
    """SHA-256 of a file, in hex; remembered in `store` until the file changes."""
    status = path.stat()
    notes = store / "digests"
    note = notes / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    seen = (status.st_size, status.st_mtime_ns, status.st_ino)
    try:
        stamp = msgspec.json.decode(note.read_bytes(), type=_Stamp)
        if (stamp.size, stamp.modified, stamp.inode) == seen:
            return stamp.digest
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        pass  # no note yet, or a torn one: take the digest
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress("Checking the model file", done / max(status.st_size, 1))
    notes.mkdir(parents=True, exist_ok=True)
    replace_file(note, msgspec.json.encode(_Stamp(*seen, digest.hexdigest())))
    return digest.hexdigest()


def key_of(marks: Iterable[str]) -> str:
    """One digest of several texts; paths among them may be any bytes."""
    return hashlib.sha256(b"\n".join(os.fsencode(mark) for mark in marks)).hexdigest()


def stamp_of(path: Path, *, head: int = 0) -> str:
    """What changes with a file that is too large to be read: size, time and its first bytes."""
    status = path.stat()
    seen = f"{status.st_size} {status.st_mtime_ns}"
    if head:
        with path.open("rb") as file:
            seen += f" {hashlib.sha256(file.read(head)).hexdigest()}"
    return seen


def build_once(store: Path, digest: str, build: Callable[[Path], None], progress: Progress) -> Path:
    """The prepared model for `digest`, built by `build(folder)` if it isn't there yet in full.

    Several processes may ask at once: one builds, the others wait. A build that fails or is
    killed leaves nothing that could be taken for a model. One that is damaged is built anew, and
    the log says what was wrong with it; nothing is deleted where that can't be told.

    Raises: what `build` does; ModelError; OSError.
    """
    key = f"{digest[:32]}-{FORMAT_VERSION}"
    target = store / key
    if is_intact(target):
        return target
    store.mkdir(parents=True, exist_ok=True)
    with locked(store / f"{key}.lock", progress):
        if target.is_dir():
            found = damage(target)
            if found is None:
                return target
            logger.warning("A prepared model was damaged, and is made anew: %s.", found.rstrip("."))
        for leftover in store.glob(f"{key}*"):  # damaged, or of a build that was killed
            if leftover.is_dir():
                shutil.rmtree(leftover)
        partial = Path(tempfile.mkdtemp(prefix=f"{key}.partial-", dir=store))
        try:
            if is_intact(SHIPPED / key):
                link_to(SHIPPED / key, partial)
            else:
                build(partial)
        except BaseException as error:
            full = isinstance(error, Exception) and is_full(partial, error)
            shutil.rmtree(partial, ignore_errors=True)
            if full:
                raise ModelError(full_message(store)) from error
            raise
        partial.rename(target)
    if found := damage(target):
        raise ModelError(
            f"The model in {target} is damaged right after it was made: {found.rstrip('.')}. Is "
            "the disk full, or failing?"
        )
    return target


def link_to(shipped: Path, folder: Path) -> None:
    """Let `folder` show what `shipped` holds. What is found out on this machine goes beside it."""
    for entry in shipped.iterdir():
        (folder / entry.name).symlink_to(entry)


@contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold `path` locked between processes; the lock ends with the process that holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Waiting for another process that works on this model", None)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

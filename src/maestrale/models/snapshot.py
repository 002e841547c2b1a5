"""The cache that the hub's tools share: where a model's files lie, and what is there already.

models--ORG--NAME/refs/main          the commit that `main` was when it was last asked for
models--ORG--NAME/blobs/CHECKSUM     a file's bytes; CHECKSUM.incomplete while they come
models--ORG--NAME/snapshots/COMMIT/  the model's files, as links to blobs

A file is linked once it is complete and checked, weights last: so a snapshot with all of its
weights is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from maestrale.errors import ModelError
from maestrale.files import replace_file
from maestrale.models.file_selection import FileSelection, select_files
from maestrale.models.hub import DEFAULT_REVISION
from maestrale.models.prepared import MOST_READ
from maestrale.models.store import Progress


@dataclass(frozen=True)
class RepoCache:
    """The folder of one model within the cache."""

    folder: Path

    @classmethod
    def of(cls, cache: Path, repo: str) -> RepoCache:
        return cls(cache / f"models--{repo.replace('/', '--')}")

    def blob(self, checksum: str) -> Path:
        return self.folder / "blobs" / checksum

    def partial(self, checksum: str) -> Path:
        return self.folder / "blobs" / f"{checksum}.incomplete"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def link(self, commit: str, name: str, checksum: str) -> None:
        """Let the snapshot's file point to its blob."""
        file = self.snapshot(commit) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(self.blob(checksum), file.parent)
        if file.is_symlink() and os.readlink(file) == target:
            return
        draft = file.with_name(f"{file.name}.{os.getpid()}.link")
        draft.unlink(missing_ok=True)
        draft.symlink_to(target)
        draft.replace(file)

    def note_revision(self, revision: str, commit: str) -> None:
        if revision != commit:
            ref = self.folder / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            replace_file(ref, commit)

    def commit_of(self, revision: str) -> str | None:
        """The commit that a revision was when it was last asked for."""
        if (self.folder / "snapshots" / revision).is_dir():
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if re.fullmatch(r"[0-9A-Za-z._-]+", commit) else None


def cached_files(
    cache: Path, repo: str, revision: str | None, engine: str, variant: str
) -> tuple[Path, FileSelection] | None:
    """The snapshot of a model that is here in full, and its files; None when it isn't."""
    place = RepoCache.of(cache, repo)
    commit = place.commit_of(revision or DEFAULT_REVISION)
    if commit is None or not place.snapshot(commit).is_dir():
        return None
    snapshot = place.snapshot(commit)
    names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()]
    try:
        selection = select_files(repo, names, engine, variant)
    except ModelError:
        return None  # not fetched yet for this engine
    if not set(_shards(snapshot)) <= set(names) and selection.kind == "safetensors":
        return None
    if not selection.complete:
        return None
    if selection.kind != "gguf" and not {"config.json", "params.json"} & set(names):
        return None
    return snapshot, selection


def cached_file(cache: Path, repo: str, revision: str, name: str) -> Path | None:
    """One file of a model, where it is here."""
    place = RepoCache.of(cache, repo)
    commit = place.commit_of(revision)
    file = place.snapshot(commit) / name if commit is not None else None
    return file if file is not None and file.is_file() else None


def _shards(snapshot: Path) -> list[str]:
    """The files of weights that the index of a snapshot names."""
    try:
        index = json.loads((snapshot / "model.safetensors.index.json").read_bytes())
        return sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return []


NOTES = ".maestrale.checked.json"
_READ = 1 << 22

Seen = tuple[int, int, int]  # size, nanoseconds of the last change, inode


class Digest:
    """A file's checksum as its bytes come: SHA-256, or git's SHA-1 of a blob of `size` bytes."""

    def __init__(self, checksum: str, size: int) -> None:
        self._checksum = checksum.lower()
        self.length = 0
        self._hash: Any = None
        if len(checksum) == 64:
            self._hash = hashlib.sha256()
        elif len(checksum) == 40:
            self._hash = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        self.length += len(chunk)
        if self._hash is not None:
            self._hash.update(chunk)

    def matches(self) -> bool:
        """Where the hub gives no checksum of a known kind, nothing speaks against it."""
        return self._hash is None or bool(self._hash.hexdigest() == self._checksum)


class CheckedFiles:
    """The files of one model in the cache, and which of them were found sound."""

    def __init__(self, place: RepoCache) -> None:
        self._notes = place.folder / NOTES
        self._seen: dict[str, Seen] = {}
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            self._seen = msgspec.json.decode(self._notes.read_bytes(), type=dict[str, Seen])

    def damaged(self, blob: Path, progress: Progress) -> bool:
        """Whether its bytes are other ones than its name promises. Raises: OSError."""
        status = blob.stat()
        seen = _seen(status)
        if status.st_size > MOST_READ and self._seen.get(blob.name) == seen:
            return False
        digest = Digest(blob.name, status.st_size)
        with blob.open("rb") as file:
            while chunk := file.read(_READ):
                digest.update(chunk)
                if status.st_size > MOST_READ:
                    progress("Checking the model's files", digest.length / status.st_size)
        if not digest.matches():
            return True
        self.note(blob, status)
        return False

    def note(self, blob: Path, status: os.stat_result | None = None) -> None:
        """It was found sound as it is now. A cache that can't be written goes without."""
        self._seen[blob.name] = _seen(status or blob.stat())
        with contextlib.suppress(OSError):
            replace_file(self._notes, msgspec.json.encode(self._seen))


def damaged_files(
    place: RepoCache, snapshot: Path, names: Iterable[str], progress: Progress
) -> list[str]:
    """Those of a snapshot's files whose bytes aren't what was fetched. Raises: OSError."""
    checked = CheckedFiles(place)
    blobs = place.folder / "blobs"
    found = []
    for name in names:
        blob = (snapshot / name).resolve()
        # A file that somebody put there has no checksum to be held to.
        if blob.parent == blobs.resolve() and checked.damaged(blob, progress):
            found.append(name)
    return found


def _seen(status: os.stat_result) -> Seen:
    return status.st_size, status.st_mtime_ns, status.st_ino

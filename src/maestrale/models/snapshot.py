"""The cache that the hub's tools share: where a model's files lie, and what is there already.

models--ORG--NAME/refs/main          the commit that `main` was when it was last asked for
models--ORG--NAME/blobs/CHECKSUM     a file's bytes; CHECKSUM.incomplete while they come
models--ORG--NAME/snapshots/COMMIT/  the model's files, as links to blobs

A file is linked once it is complete and checked, weights last: so a snapshot with all of its
weights is complete.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from maestrale.errors import ModelError
from maestrale.models.hub_names import DEFAULT_REVISION
from maestrale.models.wanted import Wanted, wanted_files


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
            ref.write_text(commit)

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
) -> tuple[Path, Wanted] | None:
    """The snapshot of a model that is here in full, and its files; None when it isn't."""
    place = RepoCache.of(cache, repo)
    commit = place.commit_of(revision or DEFAULT_REVISION)
    if commit is None or not place.snapshot(commit).is_dir():
        return None
    snapshot = place.snapshot(commit)
    names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()]
    try:
        wanted = wanted_files(repo, names, engine, variant)
    except ModelError:
        return None  # not fetched yet for this engine
    if not set(_shards(snapshot)) <= set(names) and wanted.kind == "safetensors":
        return None
    if not wanted.whole:
        return None
    if wanted.kind != "gguf" and not {"config.json", "params.json"} & set(names):
        return None
    return snapshot, wanted


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

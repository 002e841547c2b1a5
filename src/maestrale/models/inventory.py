"""The models on this machine's disk: what the hub's cache holds, and what comes with maestrale."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maestrale.errors import ModelError
from maestrale.models.catalog import CATALOG, find_model, packaged_weights
from maestrale.models.prepared import METADATA_FILE, load_prepared, weights_path

_FOLDER = "models--"
_WEIGHTS = (".gguf", ".safetensors")


@dataclass(frozen=True)
class StoredModel:
    """One model: its name as `serve` takes it, bytes on the disk, and which engines read it.

    `used`: Unix time at which the file system saw a file of it read last. `partial`: a fetch was
    cut, and goes on with the next `pull`. `folder`: None for one that comes with maestrale.
    """

    name: str
    size: int
    used: float
    engines: tuple[str, ...]
    files: tuple[str, ...]
    partial: bool = False
    folder: Path | None = None


def stored_models(cache: Path) -> list[StoredModel]:
    """All in the hub's cache, and those that come with maestrale, by name."""
    found = [*_packaged(), *_fetched(cache)]
    return sorted(found, key=lambda each: each.name.lower())


def find_stored(cache: Path, name: str) -> StoredModel:
    """The one that is called so, or that a known name stands for, whatever its letters' case.

    Raises: ModelError.
    """
    stored = stored_models(cache)
    wanted = _repositories(name)
    found = [each for each in stored if each.name.lower() in wanted]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(each.name for each in found)
        raise ModelError(f"{name} is on the disk as {both}: say which of them.")
    there = ", ".join(each.name for each in stored) or "none"
    raise ModelError(f"There is no model {name!r} on the disk; there is: {there}.")


def _repositories(name: str) -> set[str]:
    """Where a model of this name comes from, in small letters."""
    known = find_model(name)
    sources = [name] if known is None else [known.name, known.cpu_source or known.name]
    return {source.partition(":")[0].lower() for source in sources}


def gguf_of(model: StoredModel) -> Path | None:
    """Its GGUF file, of a split one the first part; None where it has other weights."""
    for name in model.files:
        if not name.lower().endswith(".gguf"):
            continue
        if model.folder is not None:
            return next(model.folder.glob(f"snapshots/*/{glob.escape(name)}"), None)
        known = find_model(model.name)
        return None if known is None else packaged_weights(known)
    return None


def remove(model: StoredModel, cache_dir: Path) -> int:
    """Delete its files, and what was prepared of them. Returns the bytes that are free now.

    Raises: ModelError.
    """
    if model.folder is None:
        raise ModelError(f"{model.name} comes with maestrale, and goes with it.")
    try:
        for prepared in _prepared_of(model.folder, cache_dir):
            shutil.rmtree(prepared)
        shutil.rmtree(model.folder)
    except OSError as error:
        raise ModelError(f"{model.folder} can't be removed: {error.strerror}.") from error
    return model.size


def _packaged() -> Iterator[StoredModel]:
    for known in CATALOG:
        path = packaged_weights(known)
        if path is not None and path.is_file():
            status = path.stat()
            yield StoredModel(known.name, status.st_size, status.st_atime, ("cpu",), (path.name,))


def _fetched(cache: Path) -> Iterator[StoredModel]:
    if not cache.is_dir():
        return
    for folder in cache.iterdir():
        if not folder.name.startswith(_FOLDER) or not folder.is_dir():
            continue
        model = _of_folder(folder)
        if model is not None:
            yield model


def _of_folder(folder: Path) -> StoredModel | None:
    snapshots = folder / "snapshots"
    names = {
        str(path.relative_to(snapshots).as_posix()).partition("/")[2]
        for path in snapshots.rglob("*")
        if path.is_file()
    }
    weights = sorted(name for name in names if name.lower().endswith(_WEIGHTS))
    blobs = [path for path in (folder / "blobs").glob("*") if path.is_file()]
    if not blobs:  # other tools copy where the file system has no links
        blobs = [path for path in snapshots.rglob("*") if path.is_file()]
    partial = any(path.name.endswith(".incomplete") for path in blobs)
    if not weights and not partial:
        return None  # a data set's, or a tokenizer's alone
    status = [path.stat() for path in blobs]
    gguf = any(name.lower().endswith(".gguf") for name in weights)
    whole = any(name.lower().endswith(".safetensors") for name in weights)
    return StoredModel(
        folder.name.removeprefix(_FOLDER).replace("--", "/", 1),
        sum(each.st_size for each in status),
        max((each.st_atime for each in status), default=0.0),
        (*(("cpu",) if gguf or whole else ()), *(("vllm",) if whole else ())),
        tuple(weights),
        partial,
        folder,
    )


def _prepared_of(folder: Path, cache_dir: Path) -> Iterator[Path]:
    """The prepared models whose weights lie in this folder."""
    inside = tuple(f"{each}{os.sep}" for each in (folder, os.path.realpath(folder)))
    for prepared in (cache_dir / "models").glob(f"*/{METADATA_FILE}"):
        try:
            weights = weights_path(load_prepared(prepared.parent), prepared.parent)
        except (ModelError, OSError):
            continue
        if os.path.realpath(weights).startswith(inside) or str(weights).startswith(inside):
            yield prepared.parent

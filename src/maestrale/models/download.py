"""A model from the hub into the cache: only the files an engine needs, resumed, checked."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maestrale.bounded import read_body
from maestrale.config.hub import HubSettings
from maestrale.errors import HubUnreachable, ModelError
from maestrale.models.access import check_access, explain
from maestrale.models.file_selection import FileSelection, WeightsKind, picked, select_files
from maestrale.models.hub import DEFAULT_REVISION, Hub, Listing, RemoteFile
from maestrale.models.snapshot import CheckedFiles, RepoCache, cached_files, damaged_files
from maestrale.models.store import Progress, locked
from maestrale.models.transfer import Meter, fetch_file, shown_bytes

HEAD_TIMEOUT = 20.0  # seconds, for what the listing left out
MOST_SMALL = 64 << 20  # bytes of a JSON file: the largest models' indexes have some ten million
SPARE = 256 << 20  # bytes that stay free on the disk

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pulled:
    """A model on this machine. `snapshot` is its folder, `weights` its first file of weights."""

    snapshot: Path
    kind: WeightsKind
    names: tuple[str, ...]
    weights: Path
    commit: str
    fetched: int  # bytes that had to be fetched

    @property
    def size(self) -> int:
        return sum((self.snapshot / name).stat().st_size for name in self.names)


def pull(
    repo: str,
    settings: HubSettings,
    progress: Progress,
    *,
    engine: str,
    revision: str | None = None,
    variant: str = "",
    refresh: bool = True,
) -> Pulled:
    """Fetch what `engine` needs of `repo`. Without `refresh`, what is here in full is taken.

    Access is tested on a real file first, then the disk's space; then files come, the small
    ones first. A cut is resumed, in this run or the next. What is here and damaged is fetched
    again.

    Raises: AccessDenied, HubUnreachable, ModelError with what to do.
    """
    here = cached_files(settings.cache, repo, revision, engine, variant)
    damaged = "" if here is None else _damage(repo, settings, *here, progress)
    if here is not None and not damaged and not (refresh and not settings.offline):
        return _pulled(*here, 0)
    if damaged and settings.offline:
        raise ModelError(
            f"{damaged} HF_HUB_OFFLINE forbids fetching it again: unset it and run this again."
        )
    if settings.offline:
        raise ModelError(
            f"{repo} is not (or not in full) in {settings.cache}, and HF_HUB_OFFLINE forbids "
            "fetching it. Unset it and run this again, or set HF_HOME to where it is."
        )
    hub, asked = Hub(settings), revision or DEFAULT_REVISION
    progress("Asking the hub", None)
    try:
        listing, head = check_access(
            hub, repo, asked, lambda found: select_files(repo, found.names, engine, variant).weights
        )
    except HubUnreachable as error:
        if damaged:
            raise HubUnreachable(f"{damaged} It can't be fetched again now: {error}") from error
        if here is None:
            raise
        logger.warning("%s Going on with what was fetched before.", error)
        return _pulled(*here, 0)
    selection = select_files(repo, listing.names, engine, variant)
    if said := picked(repo, selection):
        logger.info("%s", said)
    try:
        if damaged:
            logger.warning("%s It is fetched again.", damaged)
        return _fetch(hub, listing, selection, head, progress)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise explain(error, settings, repo, asked) from error
        raise ModelError(
            f"{repo} can't be kept in {settings.cache}: {error.strerror or error}. "
            "Set HF_HOME to a folder that can be written and has room."
        ) from error
    except ModelError:
        raise
    except Exception as error:
        raise explain(error, settings, repo, asked) from error


def fetch_small(settings: HubSettings, repo: str, revision: str, name: str) -> dict[str, Any]:
    """A JSON object of a model on the hub, not kept. Raises: ModelError; what Hub's methods do."""
    hub = Hub(settings)
    listing, _ = check_access(hub, repo, revision, lambda found: _the_one(found, name))
    with hub.open(listing, name, 0) as response:
        body = read_body(response, MOST_SMALL)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} of {repo} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{name} of {repo} is not a JSON object.")
    return document


class NoSuchFile(ModelError):
    """A repository on the hub lacks a file that would tell what it holds."""


def _the_one(listing: Listing, name: str) -> str:
    if name not in listing.names:
        raise NoSuchFile(f"{listing.repo} has no {name}, so its size can't be told beforehand.")
    return name


def _damage(
    repo: str, settings: HubSettings, snapshot: Path, selection: FileSelection, progress: Progress
) -> str:
    """A sentence about the damaged files of a model that is here; "" when all are sound."""
    try:
        found = damaged_files(
            RepoCache.of(settings.cache, repo), snapshot, selection.names, progress
        )
    except OSError as error:
        raise ModelError(
            f"{error.filename or snapshot} can't be read: {error.strerror or error}."
        ) from error
    if not found:
        return ""
    return (
        f"{', '.join(str(snapshot / name) for name in found)} is damaged: it doesn't have the "
        "checksum that it was fetched with."
    )


def _fetch(
    hub: Hub, listing: Listing, selection: FileSelection, head: RemoteFile, progress: Progress
) -> Pulled:
    place = RepoCache.of(hub.settings.cache, listing.repo)
    (place.folder / "blobs").mkdir(parents=True, exist_ok=True)
    with locked(place.folder / ".maestrale.lock", progress):
        known = listing.files | ({head.name: head} if head.checksum else {})
        files = [
            known[name] if name in known else hub.head(listing, name, HEAD_TIMEOUT)
            for name in selection.names
        ]
        for file in files:
            _check_name(listing.repo, file)
        # Small ones first, so that a snapshot with all its weights is complete.
        files.sort(key=lambda file: file.size)
        checked = CheckedFiles(place)
        missing = [file for file in files if not _is_here(place, checked, file, progress)]
        already = {file.name: _size(place.partial(file.checksum)) for file in missing}
        _check_space(listing.repo, missing, sum(already.values()), hub.settings.cache)
        total = sum(file.size for file in missing)
        if missing:
            what = f"Downloading {listing.repo} ({len(missing)} files)"
            meter = Meter(what, total, sum(already.values()), progress)
        for file in files:
            if file in missing:
                partial = place.partial(file.checksum)
                fetch_file(hub, listing, file, partial, meter)
                partial.replace(place.blob(file.checksum))
                checked.note(place.blob(file.checksum))
            place.link(listing.commit, file.name, file.checksum)
        place.note_revision(listing.revision, listing.commit)
    return _pulled(place.snapshot(listing.commit), selection, total - sum(already.values()))


def _pulled(snapshot: Path, selection: FileSelection, fetched: int) -> Pulled:
    return Pulled(
        snapshot=snapshot,
        kind=selection.kind,
        names=selection.names,
        weights=snapshot / selection.weights,
        commit=snapshot.name,
        fetched=fetched,
    )


def _check_name(repo: str, file: RemoteFile) -> None:
    """Names and checksums become paths. Raises: ModelError for one that leads elsewhere."""
    parts = Path(file.name).parts
    odd = ".." in parts or Path(file.name).is_absolute() or "\\" in file.name
    if odd or not file.checksum.replace("-", "").isalnum():
        raise ModelError(
            f"The hub names a file {file.name!r} of {repo} with the checksum {file.checksum!r}, "
            "which can't be kept under these names. Is HF_ENDPOINT a model hub?"
        )


def _is_here(place: RepoCache, checked: CheckedFiles, file: RemoteFile, progress: Progress) -> bool:
    """Whether the blob is there, and sound."""
    blob = place.blob(file.checksum)
    here = blob.is_file() and blob.stat().st_size == file.size
    return here and not checked.damaged(blob, progress)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_space(repo: str, missing: list[RemoteFile], already: int, cache: Path) -> None:
    needed = sum(file.size for file in missing) - already
    free = shutil.disk_usage(cache).free
    if missing and needed + SPARE > free:
        raise ModelError(
            f"{repo} needs {shown_bytes(needed)} more on the disk of {cache}, where "
            f"{shown_bytes(free)} are free ({shown_bytes(SPARE)} are left alone). Make room, or "
            "set HF_HOME to a folder on a larger disk. Nothing was fetched."
        )

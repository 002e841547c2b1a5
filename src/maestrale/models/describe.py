"""A model's shape and size without its weights: from the catalogue, a config, or a GGUF's head."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maestrale.config.hub import HubSettings
from maestrale.errors import ModelError
from maestrale.models.access import check_access
from maestrale.models.architecture import Architecture, from_config, gguf_shape
from maestrale.models.catalog import find_model, unknown_model
from maestrale.models.download import HEAD_TIMEOUT
from maestrale.models.file_selection import FileSelection, select_files
from maestrale.models.gguf_file import read_gguf
from maestrale.models.hub import DEFAULT_REVISION, Hub
from maestrale.models.hub_names import hub_name
from maestrale.models.local import gguf_in, local_path, refuse_other_files

FIRST_TRY, MOST = 1 << 20, 1 << 26  # bytes of the head: a vocabulary takes some millions


def remote_metadata(
    settings: HubSettings, repo: str, revision: str, variant: str
) -> tuple[dict[str, Any], int, FileSelection]:
    """The metadata of the GGUF file that would be served, the bytes of all its parts, its names.

    Raises: ModelError where there is none; what Hub's methods do.
    """
    hub = Hub(settings)
    listing, head = check_access(
        hub, repo, revision, lambda found: select_files(repo, found.names, "cpu", variant).weights
    )
    selection = select_files(repo, listing.names, "cpu", variant)
    if selection.kind != "gguf":
        raise ModelError(f"{repo} has no config.json and no GGUF file that tell its size.")
    known = listing.files | ({head.name: head} if head.checksum else {})
    sizes = {
        name: known[name].size if name in known else hub.head(listing, name, HEAD_TIMEOUT).size
        for name in selection.names
    }
    with (
        tempfile.TemporaryDirectory() as place,
        hub.open(listing, selection.weights, 0) as response,
    ):
        copy = Path(place, "head.gguf")
        enough, got = FIRST_TRY, 0
        with copy.open("wb", buffering=0) as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                got += len(chunk)
                if got < min(enough, sizes[selection.weights]):
                    continue
                # The rest stands in as a hole: where the head goes on in it, it can't be read.
                os.truncate(copy, sizes[selection.weights])
                try:
                    return read_gguf(copy).metadata, sum(sizes.values()), selection
                except ModelError:
                    enough *= 2
                if got >= min(MOST, sizes[selection.weights]):
                    break
    raise ModelError(f"{selection.weights} of {repo} doesn't begin as a GGUF file does.")


_BITS = {"fp8": "fp8", "awq": "int4", "gptq": "int4", "compressed-tensors": None}


@dataclass(frozen=True)
class HubDescription:
    """`weights` in bytes, where files tell it; `weight_type` where the model comes in one."""

    name: str
    shape: Architecture
    source: str
    weights: int | None = None
    weight_type: str | None = None


def describe(model: str, hub: HubSettings, revision: str | None = None) -> HubDescription:
    """What is known of `model`. For one on the hub its config.json is fetched, no more.

    Raises: ModelError, HubUnreachable, AccessDenied.
    """
    known = find_model(model)
    if known is not None:
        return HubDescription(known.name, known.architecture, "the catalogue")
    path = local_path(model)
    if path is not None:
        if not path.is_dir() and not path.is_file():
            raise ModelError(f"{path} is neither a file nor a folder.")
        if path.is_dir():
            return describe_folder(path)
        refuse_other_files(path)
        return describe_gguf(path)
    found = hub_name(model)
    if found is None:
        raise ModelError(unknown_model(model))
    return _describe_remote(*found, revision or DEFAULT_REVISION, hub)


def describe_folder(path: Path) -> HubDescription:
    """From a folder's config.json, and the sizes of its weights."""
    from maestrale.models.folder_words import read_json

    if not (path / "config.json").is_file():
        selection = gguf_in(path)
        if selection is None:
            raise ModelError(f"{path} is no model folder: it lacks config.json.")
        return _describe_picked(path, selection)
    config = read_json(path / "config.json")
    files = [*path.glob("*.safetensors")]
    files = [file for file in files if not file.name.startswith("consolidated")] or files
    size = sum(file.stat().st_size for file in files) or None
    return HubDescription(
        path.resolve().name, from_config(config), "config.json", size, _quantised(config)
    )


def _describe_picked(folder: Path, selection: FileSelection) -> HubDescription:
    found = describe_gguf(folder / selection.weights, folder.resolve().name)
    others = f"; others: {', '.join(selection.others)}" if selection.others else ""
    return replace(found, source=f"the metadata of {selection.weights}{others}")


def describe_gguf(path: Path, name: str | None = None) -> HubDescription:
    """From the metadata of a GGUF file, or of all parts of a split one."""
    from maestrale.models.gguf_file import gguf_parts, read_gguf_model

    metadata = read_gguf_model(path).metadata
    size = sum(part.stat().st_size for part in gguf_parts(path) if part.is_file())
    return HubDescription(name or path.stem, gguf_shape(metadata), "its metadata", size, "GGUF")


def _describe_remote(repo: str, variant: str, revision: str, hub: HubSettings) -> HubDescription:
    from maestrale.models.access import explain
    from maestrale.models.download import NoSuchFile, fetch_small
    from maestrale.models.snapshot import cached_file, cached_files

    here = None if variant else cached_file(hub.cache, repo, revision, "config.json")
    fetched = cached_files(hub.cache, repo, revision, "cpu", variant)
    if here is not None:
        from maestrale.models.folder_words import read_json

        config = read_json(here)
    elif fetched is not None and fetched[1].kind == "gguf":
        return describe_gguf(fetched[0] / fetched[1].weights, repo)
    elif hub.offline:
        raise ModelError(
            f"{repo}'s config.json is not in {hub.cache}, and HF_HUB_OFFLINE forbids fetching it."
        )
    else:
        try:
            if variant:
                return _describe_remote_gguf(repo, variant, revision, hub)
            try:
                config = fetch_small(hub, repo, revision, "config.json")
            except NoSuchFile:
                return _describe_remote_gguf(repo, variant, revision, hub)
        except ModelError:
            raise
        except Exception as error:
            raise explain(error, hub, repo, revision) from error
    return HubDescription(repo, from_config(config), "config.json", None, _quantised(config))


def _describe_remote_gguf(
    repo: str, variant: str, revision: str, hub: HubSettings
) -> HubDescription:
    metadata, size, selection = remote_metadata(hub, repo, revision, variant)
    others = f"; others: {', '.join(selection.others)}" if selection.others else ""
    source = f"the head of {selection.weights}{others}"
    return HubDescription(repo, gguf_shape(metadata), source, size, "GGUF")


def _quantised(config: Mapping[str, Any]) -> str | None:
    """The type of weights that a config states, where it is one that is known here."""
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, Mapping):
        return None
    method = str(quantisation.get("quant_method", ""))
    if method in ("gptq", "awq") and quantisation.get("bits") == 8:
        return "int8"
    return _BITS.get(method)

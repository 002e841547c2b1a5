"""What a GGUF file on the hub says of itself: of the file its head alone is fetched."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from maestrale.config.hub import HubSettings
from maestrale.errors import ModelError
from maestrale.models.access import check_access
from maestrale.models.download import HEAD_TIMEOUT
from maestrale.models.gguf_file import read_gguf
from maestrale.models.hub import Hub
from maestrale.models.wanted import Wanted, wanted_files

FIRST_TRY, MOST = 1 << 20, 1 << 26  # bytes of the head: a vocabulary takes some millions


def remote_metadata(
    settings: HubSettings, repo: str, revision: str, variant: str
) -> tuple[dict[str, Any], int, Wanted]:
    """The metadata of the GGUF file that would be served, the bytes of all its parts, its names.

    Raises: ModelError where there is none; what Hub's methods do.
    """
    hub = Hub(settings)
    listing, head = check_access(
        hub, repo, revision, lambda found: wanted_files(repo, found.names, "cpu", variant).weights
    )
    wanted = wanted_files(repo, listing.names, "cpu", variant)
    if wanted.kind != "gguf":
        raise ModelError(f"{repo} has no config.json and no GGUF file that tell its size.")
    known = listing.files | ({head.name: head} if head.checksum else {})
    sizes = {
        name: known[name].size if name in known else hub.head(listing, name, HEAD_TIMEOUT).size
        for name in wanted.names
    }
    with tempfile.TemporaryDirectory() as place, hub.open(listing, wanted.weights, 0) as response:
        copy = Path(place, "head.gguf")
        enough, got = FIRST_TRY, 0
        with copy.open("wb", buffering=0) as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                got += len(chunk)
                if got < min(enough, sizes[wanted.weights]):
                    continue
                # The rest stands in as a hole: where the head goes on in it, it can't be read.
                os.truncate(copy, sizes[wanted.weights])
                try:
                    return read_gguf(copy).metadata, sum(sizes.values()), wanted
                except ModelError:
                    enough *= 2
                if got >= min(MOST, sizes[wanted.weights]):
                    break
    raise ModelError(f"{wanted.weights} of {repo} doesn't begin as a GGUF file does.")

"""The model hub, by huggingface_hub: what a model consists of, and one file's bytes.

Its HTTP session, headers, addresses and errors are huggingface_hub's. Files come over plain
HTTP, whatever storage stands behind them, so that progress, resuming and checksums are ours. All
else that a hub answers is bounded: HF_ENDPOINT may name anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
from huggingface_hub import HfApi, hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import get_hf_file_metadata
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import (
    default_client_factory,
    get_session,
    hf_raise_for_status,
)

from maestrale.bounded import Limit, Unpacker
from maestrale.config.hub import HubSettings

DEFAULT_REVISION = "main"
READ_TIMEOUT = 20.0  # seconds without a byte after which a connection counts as cut
MOST_ANSWER = 16 << 20  # bytes of a listing, or of anything else that is no file
_IS_FILE = "maestrale_file"  # marks a request for a file, whose size the caller bounds


class _BoundedStream(httpx2.SyncByteStream):
    """The body of an answer, unpacked, as far as its limit."""

    def __init__(self, inner: httpx2.SyncByteStream, encoding: str) -> None:
        self._inner = inner
        self._unpacker = Unpacker(encoding)
        self._limit = Limit(MOST_ANSWER)

    def __iter__(self) -> Iterator[bytes]:
        for raw in self._inner:
            for part in self._unpacker.parts(raw):
                self._limit.take(len(part))
                yield part

    def close(self) -> None:
        self._inner.close()


def _bound(response: httpx2.Response) -> None:
    """Every answer goes through here before its body is read. Raises: Undecodable."""
    if _IS_FILE in response.request.extensions and response.status_code in (200, 206):
        return
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _BoundedStream(response.stream, response.headers.pop("content-encoding", ""))


def _client() -> httpx2.Client:
    client = default_client_factory()
    client.headers["Accept-Encoding"] = "identity"
    client.event_hooks = {**client.event_hooks, "response": [_bound]}
    return client


set_client_factory(_client)


@dataclass(frozen=True)
class RemoteFile:
    """`size` in bytes. `checksum` is a SHA-256 (64 hex digits: large files), or git's SHA-1 of
    a blob (40); both are also what the cache calls the file."""

    name: str
    size: int
    checksum: str


@dataclass(frozen=True)
class Listing:
    """All files of a model at one commit. `revision` is what was asked for: main, a tag ..."""

    repo: str
    revision: str
    commit: str
    names: tuple[str, ...]
    files: dict[str, RemoteFile]  # those whose size and checksum came with the listing


class Hub:
    """One hub, for one account. Methods raise what huggingface_hub does; see access.py."""

    def __init__(self, settings: HubSettings) -> None:
        self.settings = settings
        # False, not None: huggingface_hub must not look for a token by itself.
        self._token: str | bool = settings.token or False

    def account(self) -> str:
        """The name of the account that the token is of."""
        api = HfApi(endpoint=self.settings.endpoint, token=self._token, library_name="maestrale")
        return str(api.whoami().get("name", ""))

    def list(self, repo: str, revision: str, timeout: float) -> Listing:
        """The files of a model. Succeeds for a gated model without access to it."""
        api = HfApi(endpoint=self.settings.endpoint, token=self._token, library_name="maestrale")
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
        files = {}
        for sibling in info.siblings or ():
            checksum = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
            if sibling.size is not None and checksum:
                files[sibling.rfilename] = RemoteFile(sibling.rfilename, sibling.size, checksum)
        names = tuple(sibling.rfilename for sibling in info.siblings or ())
        return Listing(repo, revision, info.sha or revision, names, files)

    def head(self, listing: Listing, name: str, timeout: float) -> RemoteFile:
        """Ask for one file's head: tells whether this account may read it."""
        metadata = get_hf_file_metadata(
            self._url(listing, name),
            token=self._token,
            timeout=timeout,
            library_name="maestrale",
            endpoint=self.settings.endpoint,
        )
        return RemoteFile(name, metadata.size or 0, metadata.etag or "")

    @contextlib.contextmanager
    def open(self, listing: Listing, name: str, offset: int) -> Iterator[Any]:
        """The response with a file's bytes from `offset` on (status 206), or all (200)."""
        headers = build_hf_headers(token=self._token, library_name="maestrale")
        headers["Accept-Encoding"] = "identity"
        if offset:
            headers["Range"] = f"bytes={offset}-"
        url = self._url(listing, name)
        # Redirects to the storage lose the token on the way: the session sees to it.
        with get_session().stream(
            "GET", url, headers=headers, timeout=READ_TIMEOUT, extensions={_IS_FILE: True}
        ) as response:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            yield response

    def _url(self, listing: Listing, name: str) -> str:
        return hf_hub_url(
            listing.repo, name, revision=listing.commit, endpoint=self.settings.endpoint
        )


def status_of(error: BaseException) -> int:
    """The HTTP status of an error of this module's methods; 0 when there was no answer."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else 0

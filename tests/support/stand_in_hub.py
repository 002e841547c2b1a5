"""A model hub on loopback that behaves like huggingface.co, with faults on cue.

Listings, heads and small files come from one address, large files by redirect from another (the
"storage"), as on the real hub: gated repositories list without access, a wrong token is 401
whatever is asked, storage never sees a token. Each request is noted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
GOOD_TOKEN, STRANGER = "hf_good", "hf_stranger"
LARGE = 1000  # bytes from which a file lies in the storage


@dataclass
class Repo:
    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    bare_listing: bool = False  # without sizes and checksums, as some mirrors list


@dataclass
class Faults:
    """What goes wrong. Counts are used up; `cuts` are the bytes after which a transfer ends."""

    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # for the next requests of the storage
    api_statuses: list[int] = field(default_factory=list)
    damaged: int = 0  # transfers with one wrong byte
    no_ranges: bool = False
    delay: float = 0.0  # seconds before each answer of the hub
    chunk_pause: float = 0.0  # seconds before each 64 KiB of the storage


@dataclass
class StandInHub:
    url: str
    repos: dict[str, Repo]
    faults: Faults
    requests: list[tuple[str, str, dict[str, str]]]  # method, path, headers (lower case)
    sent: int = 0  # bytes of large files

    def paths(self, method: str) -> list[str]:
        return [path for verb, path, _ in self.requests if verb == method]

    def large_transfers(self) -> list[dict[str, str]]:
        return [
            headers
            for verb, path, headers in self.requests
            if verb == "GET" and path.startswith("/storage/")
        ]


@contextlib.contextmanager
def stand_in_hub(**repos: Repo) -> Iterator[StandInHub]:
    """A hub with these repositories; `__` in a name stands for the slash, `_` for itself."""
    named = {name.replace("__", "/"): repo for name, repo in repos.items()}
    hub = StandInHub("", named, Faults(), [])
    servers = [_server(_Handler, hub), _server(_Handler, hub)]
    hub.url = f"http://127.0.0.1:{servers[0].server_address[1]}"
    storage = f"http://127.0.0.1:{servers[1].server_address[1]}"
    for server in servers:
        server.storage = storage  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _server(handler: type[BaseHTTPRequestHandler], hub: StandInHub) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.hub = hub  # type: ignore[attr-defined]
    return server


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub: StandInHub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            (self.command, path, {key.lower(): value for key, value in self.headers.items()})
        )
        with contextlib.suppress(ConnectionError):
            if path.startswith("/storage/"):
                self._storage(path.removeprefix("/storage/"))
                return
            time.sleep(self.hub.faults.delay)
            if self.hub.faults.api_statuses:
                self._refuse(self.hub.faults.api_statuses.pop(0), "", "out of order")
            elif path == "/api/whoami-v2":
                self._whoami()
            elif path.startswith("/api/models/"):
                self._listing(path.removeprefix("/api/models/"))
            else:
                self._resolve(path.strip("/"))

    def _token(self) -> str | None:
        given = self.headers.get("Authorization")
        return given.removeprefix("Bearer ") if given else None

    def _find(self, name: str, revision: str) -> Repo | None:
        """The repository, or None after a refusal was sent."""
        token = self._token()
        if token not in (None, GOOD_TOKEN, STRANGER):
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and token != GOOD_TOKEN):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        if revision not in ("main", "v1.0", COMMIT):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo

    def _whoami(self) -> None:
        names = {GOOD_TOKEN: "tester", STRANGER: "stranger"}
        name = names.get(self._token() or "")
        if name is None:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        else:
            body = json.dumps({"type": "user", "name": name}).encode()
            self._send(200, {"Content-Type": "application/json"}, body)

    def _listing(self, rest: str) -> None:
        name, _, revision = rest.partition("/revision/")
        repo = self._find(name, revision or "main")
        if repo is None:
            return
        siblings = []
        for file, data in repo.files.items():
            entry: dict[str, object] = {"rfilename": file}
            if not repo.bare_listing:
                entry |= {"size": len(data), "blobId": git_blob(data)}
                if len(data) >= LARGE:
                    entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings})
        self._send(200, {"Content-Type": "application/json"}, body.encode())

    def _resolve(self, path: str) -> None:
        name, found, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        repo = self._find(name, revision) if found else None
        if repo is None:
            if not found:
                self._refuse(404, "", "no such page")
            return
        token = self._token()
        if repo.gated and token != GOOD_TOKEN:
            self._refuse(
                403 if token else 401,
                "GatedRepo",
                f"Access to model {name} is restricted.",
            )
            return
        if file not in repo.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        data = repo.files[file]
        headers = {"X-Repo-Commit": COMMIT}
        if len(data) >= LARGE:
            location = f"{self.server.storage}/storage/{sha256(data)}"  # type: ignore[attr-defined]
            headers |= {
                "Location": location,
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{sha256(data)}"',
                # As on the real hub, whose own client would now take another protocol.
                "X-Xet-Hash": sha256(data),
            }
            self._send(302, headers, b"")
        else:
            self._send(200, headers | {"ETag": f'"{git_blob(data)}"'}, data)

    def _storage(self, digest: str) -> None:
        faults = self.hub.faults
        if faults.statuses:
            self._refuse(faults.statuses.pop(0), "", "out of order")
            return
        files = (data for repo in self.hub.repos.values() for data in repo.files.values())
        data = next((data for data in files if sha256(data) == digest), None)
        if data is None:
            self._refuse(404, "", "gone")
            return
        start = 0
        asked = self.headers.get("Range")
        if asked and not faults.no_ranges:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        body = data[start:]
        if faults.damaged:
            faults.damaged -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        limit = faults.cuts.pop(0) if faults.cuts else len(body)
        for at in range(0, min(limit, len(body)), 65536):
            time.sleep(faults.chunk_pause)
            part = body[at : min(at + 65536, limit)]
            self.hub.sent += len(part)  # before the client can look
            self.wfile.write(part)
        if limit < len(body):
            self.close_connection = True

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message}
        if code:
            headers["X-Error-Code"] = code
        if status == 429:
            headers["Retry-After"] = "1"
        self._send(status, headers, json.dumps({"error": message}).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

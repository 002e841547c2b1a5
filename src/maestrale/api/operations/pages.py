"""The pages for people: `/` to chat, `/status` to watch, `/usage` to see who used what. Only their
shell: files, no data.

The shell is the same for everyone, so it is given without a key; what the pages then show they
fetch like any client, with one. The policy lets no script, style or image in from elsewhere, and
none that isn't a file of ours; what a model says can't become any of these.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).resolve().parents[2] / "web"
PAGES = {"/": "index.html", "/status": "status.html", "/usage": "usage.html"}
ASSETS = "/web/"
SCENARIOS = "scenarios.json"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # Text becomes markup by way of DOMPurify or not at all.
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept, and asked about each time: a new version is seen at once.
    "cache-control": "no-cache",
}


def is_shell(method: str, path: str) -> bool:
    """Whether this request is for a file of the pages, which nobody needs a key for."""
    return method in ("GET", "HEAD") and (path in PAGES or path.startswith(ASSETS))


def routes() -> list[Route]:
    async def page(request: Request) -> Response:
        return _answer(request, PAGES[request.scope["path"]])

    async def asset(request: Request) -> Response:
        return _answer(request, request.path_params["name"])

    return [
        *(Route(path, page, methods=["GET"]) for path in PAGES),
        Route(ASSETS + "{name:path}", asset, methods=["GET"]),
    ]


def _answer(request: Request, name: str) -> Response:
    # A path that the client made up never reaches the file system.
    if name not in _names():
        raise HTTPException(404)
    content, etag = _read(name)
    headers = {**HEADERS, "etag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=TYPES[Path(name).suffix])


@functools.cache
def _names() -> frozenset[str]:
    files = (path.relative_to(FOLDER) for path in FOLDER.rglob("*") if path.suffix in TYPES)
    return frozenset([SCENARIOS, *(path.as_posix() for path in files)])


@functools.cache
def _read(name: str) -> tuple[bytes, str]:
    """A file's content, and its ETag."""
    if name == SCENARIOS:
        from maestrale.api.operations.scenarios import scenarios_json

        content = scenarios_json()
    else:
        content = (FOLDER / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'

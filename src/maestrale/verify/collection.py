"""Reads Postman's files: the collection (format v2.1) and the environment.

What Postman can express and the runner can't do (other kinds of auth or body, file uploads,
protocol settings) is refused here, by the request's name, before anything is sent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maestrale.errors import CannotVerify


def bundled_collection() -> Path:
    """The collection that `maestrale verify` runs by default."""
    return _find("maestrale.postman_collection.json")


def bundled_environment() -> Path:
    """The environment that goes with it."""
    return _find("maestrale.postman_environment.json")


def _find(name: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "postman", package.parents[1] / "postman"):
        if (folder / name).is_file():
            return folder / name
    raise CannotVerify(f"This installation lacks {name}. Give a collection with --collection.")


_SCHEMA = "/collection/v2.1"
_MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Auth:
    """How a request proves who sends it. `kind`: noauth, bearer, basic or apikey."""

    kind: str
    values: dict[str, str]


@dataclass(frozen=True)
class CollectionRequest:
    """One request of the collection; {{variables}} are not replaced yet."""

    id: str
    location: tuple[str, ...]  # names of the folders, then its own
    description: str
    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: str | None
    body_mode: str
    content_type: str | None
    auth: Auth | None
    before: tuple[str, ...]  # pre-request scripts, outermost first
    tests: tuple[str, ...]  # test scripts, outermost first

    @property
    def name(self) -> str:
        return self.location[-1]

    @property
    def folder(self) -> str:
        return " / ".join(self.location[:-1])


@dataclass(frozen=True)
class Collection:
    name: str
    variables: dict[str, Any]
    requests: tuple[CollectionRequest, ...]
    folders: dict[str, str]  # path → description


@dataclass(frozen=True)
class Environment:
    name: str
    values: dict[str, Any]
    secrets: tuple[str, ...]


def read_collection(path: Path) -> Collection:
    """Read a collection file. Raises CannotVerify if it is not one, or can't be run faithfully."""
    data = _read_json(path, "collection")
    info = data.get("info")
    if not isinstance(info, dict) or not isinstance(data.get("item"), list):
        raise CannotVerify(
            f"{path} is not a Postman collection: it lacks 'info' or 'item'. "
            "Export one from Postman as 'Collection v2.1'."
        )
    if _SCHEMA not in str(info.get("schema", "")):
        raise CannotVerify(
            f"{path} is a Postman collection of another version ({info.get('schema')}). "
            "Export it from Postman as 'Collection v2.1'."
        )
    reader = _Reader()
    try:
        reader.folder(data, (), None, (), ())
        variables = _variables(data.get("variable"))
    except (KeyError, TypeError, AttributeError) as error:
        raise CannotVerify(
            f"{path} is not a well-formed Postman collection ({type(error).__name__}: {error})."
        ) from error
    if not reader.requests:
        raise CannotVerify(f"{path} holds no request.")
    return Collection(
        str(info.get("name", path.name)), variables, tuple(reader.requests), reader.folders
    )


def read_environment(path: Path) -> Environment:
    """Read an environment file. Raises CannotVerify if it is not one."""
    data = _read_json(path, "environment")
    if not isinstance(data.get("values"), list):
        raise CannotVerify(f"{path} is not a Postman environment: it lacks 'values'.")
    try:
        return Environment(
            str(data.get("name", path.name)),
            _variables(data["values"]),
            tuple(
                str(one["value"])
                for one in data["values"]
                if one.get("type") == "secret" and one.get("value")
            ),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CannotVerify(f"{path} is not a well-formed Postman environment.") from error


def _read_json(path: Path, kind: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CannotVerify(f"{path} is larger than {_MOST_BYTES // 2**20} MiB.")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CannotVerify(f"Can't read the {kind} {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CannotVerify(f"{path} is not a Postman {kind}: it is not JSON ({error}).") from error
    if not isinstance(data, dict):
        raise CannotVerify(f"{path} is not a Postman {kind}: it is no JSON object.")
    return data


def _variables(items: Any) -> dict[str, Any]:
    found = {}
    for item in items or []:
        if item.get("disabled") or item.get("enabled") is False:
            continue
        found[str(item.get("key", item.get("id")))] = item.get("value", "")
    return found


def _text(description: Any) -> str:
    if isinstance(description, dict):
        return str(description.get("content", ""))
    return description if isinstance(description, str) else ""


class _Reader:
    """Walks folders, handing auth and scripts down to the requests."""

    def __init__(self) -> None:
        self.requests: list[CollectionRequest] = []
        self.folders: dict[str, str] = {}

    def folder(
        self,
        node: dict[str, Any],
        path: tuple[str, ...],
        auth: Auth | None,
        before: tuple[str, ...],
        tests: tuple[str, ...],
    ) -> None:
        where = " / ".join(path) or "the collection"
        auth = _auth(node["auth"], where) if node.get("auth") else auth
        before += _scripts(node, "prerequest", where)
        tests += _scripts(node, "test", where)
        _refuse_protocol_settings(node, where)
        for item in node["item"]:
            here = (*path, str(item.get("name", "unnamed")))
            if isinstance(item.get("item"), list):
                if item.get("variable"):
                    raise _unsupported("variables of a folder", " / ".join(here))
                self.folders[" / ".join(here)] = _text(item.get("description"))
                self.folder(item, here, auth, before, tests)
            else:
                self.requests.append(_request(item, here, auth, before, tests))


def _unsupported(what: str, where: str) -> CannotVerify:
    return CannotVerify(
        f"'{where}' uses {what}, which this runner does not support. "
        "Run the collection in Postman or newman, or take it out."
    )


def _refuse_protocol_settings(node: dict[str, Any], where: str) -> None:
    for key in ("protocolProfileBehavior", "proxy", "certificate"):
        if node.get(key):
            raise _unsupported(key, where)


def _scripts(node: dict[str, Any], event: str, where: str) -> tuple[str, ...]:
    found = []
    for one in node.get("event") or []:
        if one.get("listen") != event or one.get("disabled"):
            continue
        script = one.get("script")
        if isinstance(script, dict):
            if script.get("src"):
                raise _unsupported("a script from a URL", where)
            if script.get("type", "text/javascript") != "text/javascript":
                raise _unsupported(f"a script of type {script['type']}", where)
            script = script.get("exec", "")
        source = "\n".join(script) if isinstance(script, list) else str(script or "")
        if source.strip():
            found.append(source)
    return tuple(found)


def _auth(node: dict[str, Any], where: str) -> Auth:
    kind = node["type"]
    if kind not in ("noauth", "bearer", "basic", "apikey"):
        raise _unsupported(f"auth of type {kind}", where)
    values = node.get(kind) or []
    if isinstance(values, list):
        values = {one["key"]: one.get("value") for one in values}
    return Auth(kind, {key: "" if value is None else str(value) for key, value in values.items()})


def _request(
    item: dict[str, Any],
    location: tuple[str, ...],
    auth: Auth | None,
    before: tuple[str, ...],
    tests: tuple[str, ...],
) -> CollectionRequest:
    where = " / ".join(location)
    _refuse_protocol_settings(item, where)
    if item.get("variable"):
        raise _unsupported("variables of a request", where)
    node = item["request"]
    if isinstance(node, str):
        node = {"url": node}
    _refuse_protocol_settings(node, where)
    body, mode, content_type = _body(node.get("body"), where)
    return CollectionRequest(
        id=str(item.get("id", "")),
        location=location,
        description=_text(node.get("description") or item.get("description")),
        method=str(node.get("method", "GET")).upper(),
        url=_url(node["url"]),
        headers=_headers(node.get("header")),
        body=body,
        body_mode=mode,
        content_type=content_type,
        auth=_auth(node["auth"], where) if node.get("auth") else auth,
        before=before + _scripts(item, "prerequest", where),
        tests=tests + _scripts(item, "test", where),
    )


def _headers(nodes: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(nodes, str):
        split = [line.partition(":") for line in nodes.splitlines() if ":" in line]
        return tuple((name.strip(), value.strip()) for name, _, value in split)
    return tuple(
        (str(one["key"]), "" if one.get("value") is None else str(one["value"]))
        for one in nodes or []
        if not one.get("disabled") and one.get("key")
    )


def _url(node: Any) -> str:
    """The URL as newman builds it: from its parts, and `raw` only where there are none."""
    if isinstance(node, str):
        return node
    if "host" not in node:
        return str(node["raw"])
    host = node["host"]
    text = ".".join(host) if isinstance(host, list) else str(host)
    if node.get("protocol"):
        text = f"{node['protocol']}://{text}"
    if node.get("port"):
        text += f":{node['port']}"
    path = node.get("path", [])
    if isinstance(path, str):
        path = path.strip("/").split("/")
    values = {one.get("key"): one.get("value") for one in node.get("variable") or []}
    parts = [str(one.get("value", "")) if isinstance(one, dict) else str(one) for one in path]
    parts = [
        str(values[one[1:]]) if one.startswith(":") and values.get(one[1:]) is not None else one
        for one in parts
    ]
    if parts:
        text += "/" + "/".join(parts)
    query = [one for one in node.get("query") or [] if not one.get("disabled")]
    if query:
        text += "?" + "&".join(
            str(one["key"]) + ("" if one.get("value") is None else f"={one['value']}")
            for one in query
        )
    return text


def _body(node: Any, where: str) -> tuple[str | None, str, str | None]:
    """(body, mode, the Content-Type that Postman sends if no header names one)."""
    if not node or node.get("disabled") or "mode" not in node:
        return None, "raw", None
    if node["mode"] != "raw":
        raise _unsupported(f"a body of mode {node['mode']}", where)
    language = ((node.get("options") or {}).get("raw") or {}).get("language", "text")
    kinds = {
        "json": "application/json",
        "xml": "application/xml",
        "html": "text/html",
        "javascript": "application/javascript",
    }
    raw = node.get("raw")
    return None if raw is None else str(raw), "raw", kinds.get(language, "text/plain")

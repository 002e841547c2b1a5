"""The OpenAPI document, and an API reference in plain HTML made from it.

The page needs no script and no network: it is served under a policy that allows neither.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from maestrale import __version__
from maestrale.api.dialect import Dialects, Operation, Reference

OPERATIONS = (
    Operation(
        "get",
        "/v1/streams/{stream_id}",
        "The rest of a stream, after Last-Event-ID; its id is in X-Stream-Id (--durable).",
    ),
    Operation("delete", "/v1/streams/{stream_id}", "Stop it, and let go of all that is kept."),
    Operation("get", "/health", "200 when requests are taken, else 503: starting, draining, dead."),
    Operation("get", "/ping", "The same as /health."),
    Operation("get", "/version", "The server's version."),
    Operation("get", "/load", "How many requests are in work or waiting."),
    Operation("get", "/metrics", "Prometheus metrics, under vLLM's names."),
    Operation("get", "/status.json", "What the status page shows: state, load, latency, errors."),
    Operation("get", "/usage.json", "What keys have used, by day, key and model."),
    Operation("get", "/", "A page to chat with the model."),
    Operation("get", "/status", "A page that shows how the server is doing."),
    Operation("get", "/usage", "A page that shows who used what."),
    Operation("get", "/openapi.json", "This reference, for machines."),
    Operation("get", "/docs", "This reference, for people."),
)
"""Those of no dialect."""

_NAMED = re.compile(r"\{(\w+)\}")
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1b1b1b;background:#fff}
code,pre{font:.9em ui-monospace,monospace}
pre{background:#f4f4f4;padding:.8rem;overflow:auto;border-radius:6px}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #ddd}
h2{margin-top:2.5rem}
.method{background:#fa5a0f;color:#fff;border-radius:4px;padding:.1rem .4rem}
@media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#161616}
pre{background:#232323}td,th{border-color:#3a3a3a}a{color:#ff9d63}}
"""

EXAMPLE = """curl {base}/v1/chat/completions \\
  -H 'Content-Type: application/json' \\
  -d '{{"messages": [{{"role": "user", "content": "Hello!"}}]}}'"""


def routes(dialects: Dialects) -> list[Route]:
    references = [dialect.reference() for dialect in dialects.all]

    async def document(request: Request) -> Response:
        return JSONResponse(build(references))

    async def page(request: Request) -> Response:
        digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'"
        base = _base(request)
        return HTMLResponse(render(base, references), headers={"content-security-policy": policy})

    return [
        Route("/openapi.json", document, methods=["GET"]),
        Route("/docs", page, methods=["GET"]),
    ]


def _base(request: Request) -> str:
    """The server's URL as its reader knows it, by way of a proxy that says so."""
    scheme = request.headers.get("x-forwarded-proto", "")
    if scheme not in ("http", "https"):
        scheme = request.url.scheme
    prefix = request.headers.get("x-forwarded-prefix", "").rstrip("/")
    if not prefix.startswith("/"):
        prefix = ""
    return f"{scheme}://{request.headers.get('host', '')}{prefix}"


def build(references: Sequence[Reference]) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    bodies = [each.body for each in _operations(references) if each.body is not None]
    _, components = msgspec.json.schema_components(
        bodies, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {}
    for place, reference in enumerate(references):
        error = "Error" if place == 0 else f"Error{place + 1}"
        components[error] = dict(reference.error_schema)
        own = (*reference.operations, *(OPERATIONS if place == 0 else ()))
        for operation in own:
            paths.setdefault(operation.path, {})[operation.method] = _operation(operation, error)
    return {
        "openapi": "3.1.0",
        "info": {"title": "maestrale", "version": __version__, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "."}],  # wherever this document was found
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operations(references: Sequence[Reference]) -> list[Operation]:
    return [*(each for reference in references for each in reference.operations), *OPERATIONS]


def render(base: str, references: Sequence[Reference]) -> str:
    """The reference as one HTML page; `base` is the server's URL as the reader knows it."""
    document = build(references)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>maestrale API</title>"
        '<meta name=viewport content="width=device-width">'
        f"<style>{STYLE}</style><h1>maestrale {__version__}</h1>"
        "<p>OpenAI's, Mistral's and Anthropic's clients work with this server. "
        'For machines: <a href="openapi.json">openapi.json</a>.</p>'
        f"<pre>{html.escape(EXAMPLE.format(base=base))}</pre>"
    ]
    noted = {name for each in references for table in each.notes.values() for name in table}
    for each in _operations(references):
        parts.append(
            f"<h2><code class=method>{each.method.upper()}</code> <code>{each.path}</code></h2>"
            f"<p>{html.escape(each.summary)}</p>"
        )
        if each.body is not None:
            schema = document["components"]["schemas"][each.body.__name__]
            parts.append(_fields(schema, noted))
    for reference in references:
        parts += [f"<h2>{title}</h2>{_pairs(table)}" for title, table in reference.notes.items()]
    return "".join(parts)


def _operation(operation: Operation, error: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{error}"}
    path = operation.path
    told: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}_"
        + path.strip("/").replace("/", "_").replace("{", "").replace("}", ""),
        "responses": {
            "200": {"description": "Success"},
            "default": {
                "description": "Any error",
                "content": {"application/json": {"schema": schema}},
            },
        },
    }
    named = _NAMED.findall(path)
    if named:
        told["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in named
        ]
    if operation.body is not None:
        body = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
        told["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    return told


def _fields(schema: dict[str, Any], noted: set[str]) -> str:
    rows = []
    required = schema.get("required", [])
    for name, kind in schema["properties"].items():
        if name in noted:
            continue
        note = " (required)" if name in required else ""
        rows.append(f"<tr><td><code>{name}</code>{note}<td>{html.escape(_describe(kind))}")
    return "<table><tr><th>Field<th>Type" + "".join(rows) + "</table>"


def _describe(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        kinds = [_describe(each) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(kinds)
    if "enum" in schema:
        return ", ".join(map(repr, schema["enum"]))
    words = str(schema.get("type", "any"))
    if words == "array":
        words = f"list of {_describe(schema.get('items', {}))}"
    for key, sign in (
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("maxLength", "length ≤"),
        ("maxItems", "items ≤"),
    ):
        if key in schema:
            words += f", {sign} {schema[key]:g}"
    return words


def _pairs(table: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td><code>{name}</code><td>{html.escape(text)}" for name, text in table.items()
    )
    return f"<table>{rows}</table>"

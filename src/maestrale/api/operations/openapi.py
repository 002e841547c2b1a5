"""The OpenAPI document, and an API reference in plain HTML made from it.

The page needs no script and no network: it is served under a policy that allows neither.
"""

from __future__ import annotations

import base64
import hashlib
import html
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from maestrale import __version__
from maestrale.api.openai.foreign_fields import IGNORED_FIELDS, UNSUPPORTED_FIELDS
from maestrale.api.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

# method, path, what it does, body
OPERATIONS: tuple[tuple[str, str, str, type[msgspec.Struct] | None], ...] = (
    ("post", "/v1/chat/completions", "Answer a conversation, whole or as a stream.", ChatRequest),
    ("post", "/v1/completions", "Continue plain text or token ids.", CompletionRequest),
    ("get", "/v1/models", "The served model, under each of its names.", None),
    ("get", "/v1/models/{model_id}", "One model; slashes in the id are fine.", None),
    ("post", "/tokenize", "The token ids of a prompt or of messages.", TokenizeRequest),
    ("post", "/detokenize", "The text of token ids.", DetokenizeRequest),
    ("get", "/tokenizer_info", "The tokenizer's names for begin and end, its template.", None),
    ("get", "/health", "200 when ready; 503 while starting, draining or dead.", None),
    ("get", "/ping", "The same as /health.", None),
    ("get", "/version", "The server's version.", None),
    ("get", "/load", "How many requests are in work or waiting.", None),
    ("get", "/metrics", "Prometheus metrics, under vLLM's names.", None),
    ("get", "/status.json", "What the status page shows: state, load, latency, errors.", None),
    ("get", "/", "A page to chat with the model.", None),
    ("get", "/status", "A page that shows how the server is doing.", None),
    ("get", "/openapi.json", "This reference, for machines.", None),
    ("get", "/docs", "This reference, for people.", None),
)

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


def routes() -> list[Route]:
    async def document(request: Request) -> Response:
        return JSONResponse(build())

    async def page(request: Request) -> Response:
        digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'"
        base = _base(request)
        return HTMLResponse(render(base), headers={"content-security-policy": policy})

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


def build() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    bodies = [body for *_, body in OPERATIONS if body is not None]
    _, components = msgspec.json.schema_components(
        bodies, ref_template="#/components/schemas/{name}"
    )
    components["Error"] = _error_schema()
    paths: dict[str, Any] = {}
    for method, path, summary, body in OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(path, summary, body)
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


def render(base: str) -> str:
    """The reference as one HTML page; `base` is the server's URL as the reader knows it."""
    document = build()
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>maestrale API</title>"
        '<meta name=viewport content="width=device-width">'
        f"<style>{STYLE}</style><h1>maestrale {__version__}</h1>"
        "<p>OpenAI's and Mistral's clients work with this server. "
        'For machines: <a href="openapi.json">openapi.json</a>.</p>'
        f"<pre>{html.escape(EXAMPLE.format(base=base))}</pre>"
    ]
    for method, path, summary, body in OPERATIONS:
        parts.append(
            f"<h2><code class=method>{method.upper()}</code> <code>{path}</code></h2>"
            f"<p>{html.escape(summary)}</p>"
        )
        if body is not None:
            parts.append(_fields(document["components"]["schemas"][body.__name__]))
    parts.append("<h2>Accepted, and without effect</h2>" + _pairs(IGNORED_FIELDS))
    parts.append(
        "<h2>Refused, but where they ask for what is done anyway</h2>" + _pairs(UNSUPPORTED_FIELDS)
    )
    return "".join(parts)


def _operation(path: str, summary: str, body: type[msgspec.Struct] | None) -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/Error"}
    operation: dict[str, Any] = {
        "summary": summary,
        "operationId": path.strip("/").replace("/", "_").replace("{", "").replace("}", ""),
        "responses": {
            "200": {"description": "Success"},
            "default": {
                "description": "Any error",
                "content": {"application/json": {"schema": error}},
            },
        },
    }
    if "{model_id}" in path:
        operation["parameters"] = [
            {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _error_schema() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}, "param": text,
              "code": text}  # fmt: skip
    error = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": error, **fields}, "required": ["error"]}


def _fields(schema: dict[str, Any]) -> str:
    rows = []
    required = schema.get("required", [])
    for name, kind in schema["properties"].items():
        if name in IGNORED_FIELDS or name in UNSUPPORTED_FIELDS:
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


def _pairs(table: dict[str, str]) -> str:
    rows = "".join(
        f"<tr><td><code>{name}</code><td>{html.escape(text)}" for name, text in table.items()
    )
    return f"<table>{rows}</table>"

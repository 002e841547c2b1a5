"""A key, and what must not pass for one."""

from __future__ import annotations

from api_app import CHAT

KEY = "sk-maestrale-abcdefghijklmnop"
CLOSED = [CHAT, "/v1/completions", "/v1/fim/completions", "/v1/embeddings", "/tokenize",
          "/detokenize", "/v1/models", "/v1/models/x", "/version", "/load", "/metrics", "/docs",
          "/openapi.json", "/nope", "/status.json", "/usage.json"]  # fmt: skip

BAD_KEYS: dict[str, dict[str, str | bytes]] = {
    "none": {},
    "empty": {"authorization": ""},
    "empty bearer": {"authorization": "Bearer "},
    "basic": {"authorization": "Basic c2s6eA=="},
    "a prefix": {"authorization": f"Bearer {KEY[:-1]}"},
    "longer": {"authorization": f"Bearer {KEY}x"},
    "1 MB": {"authorization": "Bearer " + "x" * 1_000_000},
    "not ASCII": {"authorization": "Bearer sk-é".encode()},
    "SQL": {"authorization": "Bearer ' OR 1=1 --"},
    "without scheme": {"authorization": KEY},
}

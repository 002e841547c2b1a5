"""How a model on the hub is called: ORG/NAME, and after a colon which of its GGUF files."""

from __future__ import annotations

import re

DEFAULT_REVISION = "main"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?::(?P<variant>[\w./ -]+))?")


def hub_name(text: str) -> tuple[str, str] | None:
    """(`ORG/NAME`, variant or empty) where `text` can be a name on the hub, else None."""
    match = _NAME.fullmatch(text)
    return (match["repo"], match["variant"] or "") if match else None

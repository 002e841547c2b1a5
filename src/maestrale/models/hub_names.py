"""What a name on the hub looks like; apart from `hub.py`, which takes long to import."""

from __future__ import annotations

import re

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?::(?P<variant>[\w./ -]+))?")


def hub_name(text: str) -> tuple[str, str] | None:
    """(`ORG/NAME`, variant or empty) where `text` can be a name on the hub, else None."""
    match = _NAME.fullmatch(text)
    return (match["repo"], match["variant"] or "") if match else None

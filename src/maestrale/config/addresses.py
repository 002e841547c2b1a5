"""Addresses: which are this machine's own, and what people write for a server's."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a name or an address (brackets allowed) can only mean this machine.

    Of names these are localhost and those below it (RFC 6761). Any other can't be trusted: what it
    means is up to whoever answers for it.
    """
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def server_url(text: str) -> str:
    """A server's URL without a slash or `/v1` at its end, from what people paste: `:8000` too."""
    url = f"127.0.0.1{text}" if text.startswith(":") else text
    url = url if "://" in url else f"http://{url}"
    return url.rstrip("/").removesuffix("/v1").rstrip("/")

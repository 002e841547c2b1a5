"""The SDKs as the end-to-end tests use them."""

from __future__ import annotations

from openai import OpenAI

from serving import Server

TIMEOUT = 120.0  # seconds; a machine that does other things as well must not fail a test


def strict_openai(server: Server, key: str = "none", *, max_retries: int = 0) -> OpenAI:
    """A client that refuses any answer that OpenAI's own types don't describe."""
    return OpenAI(
        base_url=f"{server.url}/v1",
        api_key=key,
        timeout=TIMEOUT,
        max_retries=max_retries,
        _strict_response_validation=True,
    )

"""What a running server says of itself at /status.json, read within bounds."""

from __future__ import annotations

import json
from typing import Any

from maestrale.bounded import MOST_BODY, UNCOMPRESSED, read_body


def read_status(url: str, api_key: str | None, *, timeout: float) -> tuple[int, Any]:
    """The HTTP status and, where that is a success, the JSON; `url` without a path.

    `timeout`: seconds for each wait; the whole takes twice that at most. Raises: httpx.HTTPError,
    httpx.InvalidURL, ValueError or RecursionError for what is no JSON, Oversized, Undecodable.
    """
    import httpx

    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    with (
        httpx.Client(timeout=timeout, trust_env=False) as client,
        client.stream("GET", f"{url}/status.json", headers={**headers, **UNCOMPRESSED}) as answer,
    ):
        if not answer.is_success:
            return answer.status_code, None
        return answer.status_code, json.loads(read_body(answer, MOST_BODY, seconds=2 * timeout))

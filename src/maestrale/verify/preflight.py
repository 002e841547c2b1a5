"""Before the run: is there an API at all, and which model shall be asked?"""

from __future__ import annotations

import json

from maestrale.errors import CannotVerify
from maestrale.verify.exchange import NoAnswer, exchange
from maestrale.verify.runner import RunOptions


async def first_model(server: str, api_key: str, options: RunOptions) -> str:
    """The id of the first model that the server lists.

    `server` is the URL without /v1. Raises CannotVerify if there is none, saying what is wrong.
    """
    url = f"{server}/v1/models"
    headers = [("Authorization", f"Bearer {api_key}")] if api_key else []
    try:
        answer = await exchange(
            "GET",
            url,
            headers,
            None,
            seconds=options.seconds,
            connect_seconds=options.connect_seconds,
        )
    except NoAnswer as error:
        raise CannotVerify(
            f"{error} (asked: GET {url}). Is the server running, and is the URL right?"
        ) from error
    if answer.status in (401, 403):
        given = "refuses the key that was given" if api_key else "asks for a key"
        raise CannotVerify(
            f"{server} {given} ({answer.status}). Give one with "
            "MAESTRALE_API_KEY, --api-key-file or --api-key."
        )
    if answer.status == 404:
        raise CannotVerify(
            f"{url} is not found (404). If this is a chat API that lists no models, name one "
            "with --model; otherwise the URL is wrong."
        )
    if answer.status != 200:
        raise CannotVerify(f"{url} answers {answer.status} {answer.reason}: it is not ready.")
    text = answer.text()
    if "html" in answer.header("content-type") or text.lstrip()[:1] == "<":
        raise CannotVerify(f"{url} answers with a web page (HTML). This URL is not that of an API.")
    try:
        return str(json.loads(text)["data"][0]["id"])
    except (ValueError, RecursionError) as error:
        raise CannotVerify(f"{url} answers with broken JSON: {text[:80]!r}") from error
    except (KeyError, IndexError, TypeError) as error:
        raise CannotVerify(f"{url} lists no model: {text[:80]!r}") from error

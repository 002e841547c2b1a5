"""The server that `maestrale chat` talks to, by HTTP: any that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from maestrale.config import is_loopback
from maestrale.errors import CannotChat

CONNECT_SECONDS = 10.0
START_SECONDS = 900.0  # a first start converts a model; a large one takes minutes
SILENCE_SECONDS = 600.0  # a queue may be long; a server of ours sends comments meanwhile


@dataclass
class Outcome:
    """How an answer ended. Times in seconds; `finish_reason` "" when it was left."""

    finish_reason: str = ""
    seed: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token: float | None = None
    seconds: float = 0.0
    text: list[str] = field(default_factory=list)


class ChatServer:
    """One server, by its URL with or without `/v1`, and the key to send, if any."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Raises: CannotChat for what is no URL or no key."""
        url = f"127.0.0.1{url}" if url.startswith(":") else url
        url = url if "://" in url else f"http://{url}"
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._key = api_key
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            host = urlsplit(self.url).hostname or ""
            self._client = httpx.Client(
                base_url=f"{self.url}/v1",
                headers=headers,
                timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
                trust_env=not is_loopback(host),
            )
            self._client.build_request("GET", "/models")
        except (httpx.InvalidURL, ValueError) as error:
            what = "The key" if isinstance(error, UnicodeError) else url
            raise CannotChat(f"{what} can't be used: {error}.") from error

    def close(self) -> None:
        self._client.close()

    def models(self, waiting: Callable[[str], None]) -> list[str]:
        """What the server serves. While it still loads its model, `waiting` is told why.

        Raises: CannotChat that says what is wrong and what to do.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            with self._explained():
                answer = self._client.get("/models")
            if answer.status_code == 503 and time.monotonic() < deadline:
                waiting(_message(answer))
                time.sleep(1)
                continue
            self._check(answer)
            try:
                names = [str(each["id"]) for each in answer.json()["data"]]
                if names:
                    return names
                raise CannotChat(f"{self.url} serves no model.")
            except (ValueError, LookupError, TypeError) as error:
                raise CannotChat(
                    f"{self.url} answers, but not as a chat API: {answer.text[:80]!r}. "
                    "Is the URL right?"
                ) from error

    def stream(self, body: dict[str, Any], outcome: Outcome) -> Iterator[str]:
        """The pieces of an answer as they come; `outcome` is filled in meanwhile.

        Leaving the iterator closes the connection, which makes the server stop.
        Raises: CannotChat.
        """
        begun = time.perf_counter()
        try:
            with (
                self._explained(),
                self._client.stream("POST", "/chat/completions", json=body) as answer,
            ):
                if answer.status_code != 200:
                    answer.read()
                    self._check(answer)
                outcome.seed = answer.headers.get("x-seed", "")
                for event in _events(answer):
                    if text := _note(event, outcome):
                        if outcome.first_token is None:
                            outcome.first_token = time.perf_counter() - begun
                        outcome.text.append(text)
                        yield text
        finally:
            outcome.seconds = time.perf_counter() - begun

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code in (401, 403):
            given = "refuses the key that was given" if self._key else "asks for a key"
            raise CannotChat(
                f"{self.url} {given} ({answer.status_code}: {_message(answer)}). "
                "Give one with --api-key or MAESTRALE_API_KEY."
            )
        if answer.status_code != 200:
            raise CannotChat(f"{self.url} answers {answer.status_code}: {_message(answer)}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Failures of the connection as CannotChat."""
        try:
            yield
        except httpx.ConnectError as error:
            raise CannotChat(
                f"Nothing answers at {self.url} ({error}). Start a server with 'maestrale serve', "
                "or give the URL of one: maestrale chat URL."
            ) from error
        except httpx.TimeoutException as error:
            what = type(error).__name__
            raise CannotChat(f"{self.url} did not answer in time ({what}).") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise CannotChat(f"The connection to {self.url} broke: {error}.") from error


def _events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON of each event. Raises: CannotChat for an error event, or a stream cut off."""
    for line in answer.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _broken(data) from error
        if not isinstance(event, dict):
            raise _broken(data)
        if told := event.get("error"):
            raise CannotChat(str(told.get("message", told) if isinstance(told, dict) else told))
        yield event
    raise CannotChat("The answer was cut off: the server closed the connection.")


def _note(event: dict[str, Any], outcome: Outcome) -> str:
    """The text of an event; the rest goes to `outcome`. Raises: CannotChat for another shape."""
    try:
        usage = event.get("usage")
        if usage:
            outcome.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            outcome.completion_tokens = int(usage.get("completion_tokens") or 0)
        text = ""
        for choice in event.get("choices") or ():
            text += (choice.get("delta") or {}).get("content") or ""
            outcome.finish_reason = str(choice.get("finish_reason") or outcome.finish_reason)
    except (AttributeError, TypeError, ValueError) as error:
        raise _broken(json.dumps(event)) from error
    return text


def _broken(data: str) -> CannotChat:
    return CannotChat(f"The answer is broken: {data[:80]!r}.")


def _message(answer: httpx.Response) -> str:
    """The server's own words for a refusal, on one line."""
    try:
        told = answer.json()
        return str((told["error"] if isinstance(told.get("error"), dict) else told)["message"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return " ".join(answer.text.split())[:200] or answer.reason_phrase

"""The server that `maestrale chat` talks to, by HTTP: any that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from maestrale.bounded import (
    MOST_LIST,
    MOST_STREAM,
    UNCOMPRESSED,
    EventReader,
    Oversized,
    Undecodable,
    read_body,
    read_parts,
)
from maestrale.config.addresses import is_loopback, server_url
from maestrale.errors import CannotChat
from maestrale.printable import brief

_ERRNO = re.compile(r"\[Errno -?\d+\] ")

CONNECT_SECONDS = 10.0
START_SECONDS = 900.0  # a first start converts a model; a large one takes minutes
SILENCE_SECONDS = 600.0  # a queue may be long; a server of ours sends comments meanwhile
LIST_SECONDS = 60.0  # for the whole list of models
RESUME_SECONDS = 120.0  # for which a server that is gone may come again
# Codes of ends after which another server may go on.
GOES_ON = ("draining", "engine_died", "unavailable")
RESUME_PAUSE = 0.5  # seconds between two attempts
MOST_ANSWER = 16 << 20  # characters of one answer


@dataclass
class AnswerOutcome:
    """How an answer ended. Times in seconds; `finish_reason` "" when it was left."""

    finish_reason: str = ""
    seed: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token: float | None = None
    seconds: float = 0.0
    text: list[str] = field(default_factory=list)


@dataclass
class AnswerPart:
    """What came of an answer: of what the model thinks, and of what it says."""

    thought: str = ""
    text: str = ""


class ConnectionLost(CannotChat):
    """There is no connection to the server, or none any more."""


@dataclass
class StreamPlace:
    """Where in a stream one is: its id and that of the last event, where the server keeps it."""

    stream: str = ""
    last: str = ""
    ended: bool = False


class ChatServer:
    """One server, by its URL with or without `/v1`, and the key to send, if any."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Raises: CannotChat for what is no URL or no key."""
        self.url = server_url(url)
        self._key = api_key
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        headers |= UNCOMPRESSED
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
            what = "The key" if isinstance(error, UnicodeError) else self.url
            raise CannotChat(f"{what} can't be used: {error}.") from error

    def close(self) -> None:
        self._client.close()

    def models(self, waiting: Callable[[str], None]) -> list[str]:
        """What the server serves. While it still loads its model, `waiting` is told why.

        Raises: CannotChat that says what is wrong and what to do.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            with self._explained(), self._client.stream("GET", "/models") as answer:
                body = read_body(answer, MOST_LIST, seconds=LIST_SECONDS)
            if answer.status_code == 503 and time.monotonic() < deadline:
                waiting(_message(answer, body))
                time.sleep(1)
                continue
            self._check(answer, body)
            try:
                names = [str(each["id"]) for each in json.loads(body)["data"]]
                if names:
                    return names
                raise CannotChat(f"{self.url} serves no model.")
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise CannotChat(
                    f"{self.url} answers, but not as a chat API: {_quoted(body)}. Is the URL right?"
                ) from error

    def stream(
        self,
        body: dict[str, Any],
        outcome: AnswerOutcome,
        waiting: Callable[[str], None] = lambda text: None,
    ) -> Iterator[AnswerPart]:
        """The pieces of an answer as they come; `outcome` is filled in meanwhile. A stream that the
        server keeps is gone on with after a lost connection; `waiting` is told meanwhile.

        Leaving the iterator closes the connection, which makes the server stop.
        Raises: CannotChat.
        """
        begun, place = time.perf_counter(), StreamPlace()
        try:
            length = 0
            for event in self._all_events(body, outcome, place, waiting):
                piece = _note(event, outcome)
                if piece.thought or piece.text:
                    length += len(piece.thought) + len(piece.text)
                    if length > MOST_ANSWER:
                        raise CannotChat(
                            f"{self.url} was left: the answer has no end. Is it a chat API?"
                        )
                    if outcome.first_token is None:
                        outcome.first_token = time.perf_counter() - begun
                    outcome.text.append(piece.text)
                    yield piece
        finally:
            outcome.seconds = time.perf_counter() - begun
            if place.stream and not place.ended:
                self._let_go(place.stream)

    def _all_events(
        self,
        body: dict[str, Any],
        outcome: AnswerOutcome,
        place: StreamPlace,
        waiting: Callable[[str], None],
    ) -> Iterator[dict[str, Any]]:
        """Those of the answer, over as many connections as it takes. Raises: CannotChat."""
        lost: float | None = None  # since when nothing came
        while True:
            try:
                with self._explained(), self._ask(body, place) as answer:
                    if place.stream and answer.status_code == 204:
                        return
                    if answer.status_code != 200:
                        told = read_body(answer, MOST_LIST, seconds=LIST_SECONDS)
                        if place.stream and answer.status_code == 503:
                            raise ConnectionLost(_message(answer, told))
                        self._check(answer, told)
                    place.stream = answer.headers.get("x-stream-id", place.stream)
                    outcome.seed = answer.headers.get("x-seed", outcome.seed)
                    for event in _events(answer, place):
                        lost = None
                        yield event
                    place.ended = True
                    return
            except ConnectionLost as error:
                now = time.monotonic()
                lost = now if lost is None else lost
                if not place.stream or now - lost > RESUME_SECONDS:
                    raise
                waiting(f"{error} The answer goes on as soon as the server is there again.")
                time.sleep(RESUME_PAUSE)

    def _ask(
        self, body: dict[str, Any], place: StreamPlace
    ) -> AbstractContextManager[httpx.Response]:
        if not place.stream:
            return self._client.stream("POST", "/chat/completions", json=body)
        headers = {"last-event-id": place.last} if place.last else {}
        return self._client.stream("GET", f"/streams/{place.stream}", headers=headers)

    def _let_go(self, stream: str) -> None:
        """Nobody will ask for the rest: the server needn't make it, nor keep the question."""
        with suppress(httpx.HTTPError):
            self._client.delete(f"/streams/{stream}", timeout=CONNECT_SECONDS)

    def _check(self, answer: httpx.Response, body: bytes) -> None:
        if answer.status_code in (401, 403):
            given = "refuses the key that was given" if self._key else "asks for a key"
            raise CannotChat(
                f"{self.url} {given} ({answer.status_code}: {_message(answer, body)}). "
                "Give one with MAESTRALE_API_KEY, --api-key-file or --api-key."
            )
        if answer.status_code != 200:
            raise CannotChat(f"{self.url} answers {answer.status_code}: {_message(answer, body)}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Failures of the connection as CannotChat."""
        try:
            yield
        except httpx.ConnectError as error:
            raise ConnectionLost(
                f"Nothing answers at {self.url} ({_ERRNO.sub('', str(error))}). "
                "Start a server with 'maestrale serve', or give the URL of one: maestrale chat URL."
            ) from error
        except httpx.TimeoutException as error:
            what = type(error).__name__
            raise CannotChat(f"{self.url} did not answer in time ({what}).") from error
        except httpx.TransportError as error:
            raise ConnectionLost(f"The connection to {self.url} broke: {error}.") from error
        except Undecodable as error:
            raise CannotChat(f"What {self.url} sends can't be decompressed: {error}.") from error
        except Oversized as error:
            raise CannotChat(f"{self.url} was left: {error}. Is it a chat API?") from error


def _events(answer: httpx.Response, place: StreamPlace) -> Iterator[dict[str, Any]]:
    """The JSON of each event. Raises: CannotChat for an error event, ConnectionLost for a stream
    that was cut off.
    """
    reader = EventReader()
    for data in _data(answer, reader):
        if data.strip() == b"[DONE]":
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _broken(data) from error
        if not isinstance(event, dict):
            raise _broken(data)
        if told := event.get("error"):
            words = told.get("message", told) if isinstance(told, dict) else told
            code = told.get("code") if isinstance(told, dict) else None
            raise (ConnectionLost if code in GOES_ON else CannotChat)(brief(str(words)))
        place.last = reader.last_id
        yield event
    raise ConnectionLost("The answer was cut off: the server closed the connection.")


def _data(answer: httpx.Response, events: EventReader) -> Iterator[bytes]:
    for part in read_parts(answer, MOST_STREAM):
        yield from events.feed(part)
    yield from events.rest()


def _note(event: dict[str, Any], outcome: AnswerOutcome) -> AnswerPart:
    """What an event says; the rest goes to `outcome`. Raises: CannotChat for another shape."""
    try:
        usage = event.get("usage")
        if usage:
            outcome.prompt_tokens = _count(usage.get("prompt_tokens"))
            outcome.completion_tokens = _count(usage.get("completion_tokens"))
        piece = AnswerPart()
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            # vLLM's name of it and ours, OpenRouter's and Ollama's.
            piece.thought += delta.get("reasoning_content") or delta.get("reasoning") or ""
            piece.text += delta.get("content") or ""
            outcome.finish_reason = str(choice.get("finish_reason") or outcome.finish_reason)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise _broken(json.dumps(event).encode()) from error
    return piece


def _count(value: Any) -> int:
    """A number of tokens; 0 where it isn't told. Raises: what `int` does; ValueError."""
    count = int(value or 0)
    if not 0 <= count <= 10**9:
        raise ValueError("no number of tokens")
    return count


def _broken(data: bytes) -> CannotChat:
    return CannotChat(f"The answer is broken: {_quoted(data)}.")


def _quoted(body: bytes) -> str:
    """The beginning of what came, as Python writes it."""
    return repr(body[:80].decode(errors="replace"))


def _message(answer: httpx.Response, body: bytes) -> str:
    """The server's own words for a refusal, on one line."""
    try:
        told = json.loads(body)
        words = (told["error"] if isinstance(told.get("error"), dict) else told)["message"]
        return brief(str(words))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return brief(body.decode(errors="replace"), 200) or brief(answer.reason_phrase, 80)

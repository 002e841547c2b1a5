"""What a dialect is: the words of one API, and all that knows them.

A dialect reads bodies into what chat/options.py understands and spells what comes back: answers
whole and as events, errors, headers. Nothing else in api/, and nothing below it, knows these words;
api/dialects.py says which dialects there are. Errors from before a route (no key, a full queue,
broken HTTP) are spelled, too, by the dialect of the path that was asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from msgspec import Struct
from starlette.routing import Route

from maestrale.api.rate import Level
from maestrale.chat.answer import Answer
from maestrale.chat.options import Asked, Options
from maestrale.chat.reader import Piece
from maestrale.chat.service import ChatService
from maestrale.errors import ApiError, Location, Sent

Name = Callable[[Location], str]


class Spelling(Protocol):
    """How one answer is spelled. Events of a stream are whole: `data: ...` and an empty line."""

    id: str
    """The answer's, as its client sees it."""

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The whole answer; `pieces` has one for each choice, in order."""

    def opening(self) -> bytes:
        """The events before the first piece, if there are any."""

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        """The events of a piece; `is_last` for the piece that ends the last choice."""

    def closing(self) -> bytes:
        """The events after the last piece."""

    def failure(self, body: bytes) -> bytes:
        """The events that end a stream by an error, which has this body, at any point of it."""


class AnswerRequest(Struct, frozen=True, kw_only=True):
    """A request for an answer, read: what is asked, how to answer, how to spell it.

    `keep` False: nothing of it shall be kept, whatever the server would. `operation` is the
    request's kind in the words of OpenTelemetry's GenAI conventions. `renamed`
    has what this client called something otherwise than the dialect's others.
    """

    asked: Asked
    options: Options
    spelling: Callable[[ChatService, Answer, str], Spelling]
    """Made of the service, the answer, and the served model's name."""
    stream: bool = False
    keep: bool = True
    operation: str = "chat"
    renamed: Mapping[Location, Sent] = {}


class Operation(Struct, frozen=True):
    """A route, for the reference: its method in small letters, its path, what it does, its body."""

    method: str
    path: str
    summary: str
    body: type[Struct] | None = None


class Reference(Struct, frozen=True, kw_only=True):
    """What the API's reference tells of a dialect. `notes` are tables of fields, by title."""

    operations: tuple[Operation, ...]
    error_schema: Mapping[str, Any]
    notes: Mapping[str, Mapping[str, str]] = {}


class Dialect(ABC):
    """One API's words."""

    paths: ClassVar[tuple[str, ...]]
    """It is spoken at these paths and below them."""

    exposed_headers: ClassVar[tuple[str, ...]] = ()
    """Headers of its own that pages of other origins may read."""

    @abstractmethod
    def routes(self, backend: Any) -> list[Route]:
        """Its routes on this Backend, which stands on what is here; most are made by `answering`
        (api/answering.py).
        """

    @abstractmethod
    def locate(self, location: Location) -> Sent:
        """What its clients call a location of the neutral request (chat/options.py)."""

    @abstractmethod
    def error(
        self, error: ApiError, message: str, at: str | None, request_id: str
    ) -> dict[str, Any]:
        """The body of an error, whose message and place are in its own words already."""

    def status(self, error: ApiError) -> int:
        """The HTTP status of an error."""
        return error.status

    def spell(self, sent: Sent) -> str:
        """A place of a body, as this dialect's errors write it."""
        return str(sent)

    def headers(self, request_id: str, levels: Sequence[Level]) -> dict[str, str]:
        """Its own headers of every answer, errors included; `levels`: of limits the key has."""
        return {}

    @abstractmethod
    def reference(self) -> Reference:
        """What the API's reference tells of it."""

    def names(self, renamed: Mapping[Location, Sent]) -> Name:
        """What it calls locations; `renamed` goes before, the longest that fits."""

        def name(location: Location) -> str:
            if isinstance(location, Sent):
                return self.spell(location)
            for length in range(len(location), 0, -1):
                own = renamed.get(Location(*location[:length]))
                if own is not None:
                    return self.spell(own.at(*location[length:]))
            return self.spell(self.locate(location))

        return name


class Dialects:
    """The dialects of one server. The first is that of all paths which are no other's."""

    def __init__(self, *dialects: Dialect) -> None:
        self.all = dialects

    def at(self, path: str) -> Dialect:
        """The dialect spoken at a path, where there is a route or not."""
        for dialect in self.all[1:]:
            if any(path == own or path.startswith(f"{own}/") for own in dialect.paths):
                return dialect
        return self.all[0]

"""A dialect of one file, with words of its own for everything: what another one needs, at least.

`POST /toy/say` takes `{"talk": [{"who", "says"}], "most", "kit", "shape", "flow"}`, and
`GET /toy/hello` tells who is there. An error is `{"oops": {"kind", "why", "spot"}}` with a spot
such as `talk/0/who`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maestrale.api.answering import Serving, answering
from maestrale.api.backend import Backend
from maestrale.api.dialect import AnswerRequest, Dialect, Operation, Reference
from maestrale.api.rate import Level
from maestrale.chat.answer import Answer
from maestrale.chat.options import CONSTRAINT, Conversation, Options, schema_constraint
from maestrale.chat.reader import Piece
from maestrale.chat.service import ChatService
from maestrale.chat.tools import Choice, check_names, tool_spec, tool_use
from maestrale.engines.base import Sampling
from maestrale.errors import ApiError, Location, Sent, Unavailable
from maestrale.prompt.messages import ChatMessage, Role

ROLES: dict[str, Role] = {"me": "user", "you": "assistant", "boss": "system"}
ENDS = {"stop": "done", "length": "cut", "calls": "use"}


def nothing() -> Raw:
    """A field that is not given."""
    return Raw(b"null")


class Line(Struct, kw_only=True, forbid_unknown_fields=True):
    who: Literal["me", "you", "boss"]
    says: str


class Gadget(Struct, kw_only=True, forbid_unknown_fields=True):
    called: str
    takes: Raw = msgspec.field(default_factory=nothing)


class Say(Struct, kw_only=True, forbid_unknown_fields=True):
    talk: Annotated[list[Line], Meta(min_length=1)]
    model: str | None = None
    most: Annotated[int, Meta(ge=1)] | None = None
    least: int = 0
    luck: int | None = None
    kit: list[Gadget] = []
    must: bool = False
    pick: str | None = None
    shape: Raw = msgspec.field(default_factory=nothing)
    flow: bool = False


def read(body: Say, serving: Serving) -> AnswerRequest:
    specs = check_names(
        [
            tool_spec(index, gadget.called, bytes(gadget.takes))
            for index, gadget in enumerate(body.kit)
        ]
    )
    names = None if body.pick is None else (body.pick,)
    shape = bytes(body.shape)
    return AnswerRequest(
        asked=Conversation(
            messages=tuple(
                ChatMessage(role=ROLES[line.who], content=line.says) for line in body.talk
            )
        ),
        options=Options(
            seed=body.luck,
            max_tokens=body.most,
            min_tokens=body.least,
            sampling=Sampling(temperature=serving.sampling.temperature),
            constraint=None if shape == b"null" else schema_constraint(shape, CONSTRAINT),
            tools=tool_use(specs, Choice(required=body.must, names=names), parallel=True),
        ),
        spelling=ToySpelling,
        stream=body.flow,
    )


class ToySpelling:
    def __init__(self, service: ChatService, answer: Answer, model: str) -> None:
        self.id = f"toy.{answer.id}"
        self._answer = answer
        self._model = model

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        return {"name": self.id, "from": self._model, **self._told(pieces[0])}

    def opening(self) -> bytes:
        return _event("begin", {"name": self.id, "from": self._model})

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        return _event("more", self._told(piece))

    def closing(self) -> bytes:
        return _event("end", {"cost": self._answer.usage.completion_tokens})

    def failure(self, body: bytes) -> bytes:
        return b"event: oops\ndata: " + body + b"\n\n"

    def _told(self, piece: Piece) -> dict[str, Any]:
        uses = [{"called": call.name, "with": call.arguments} for call in piece.calls]
        ends = None if piece.finish_reason is None else ENDS[piece.finish_reason]
        return {"says": piece.text, "uses": uses, "ends": ends}


class Toy(Dialect):
    paths = ("/toy",)
    exposed_headers = ("toy-left-requests",)

    def routes(self, backend: Backend) -> list[Route]:
        async def hello(request: Request) -> Response:
            await backend.check_ready()
            return JSONResponse({"here": list(backend.deployments.names)})

        return [
            Route("/toy/say", answering(backend, Say, read), methods=["POST"]),
            Route("/toy/hello", hello, methods=["GET"]),
        ]

    def locate(self, location: Location) -> Sent:
        match location:
            case ("messages", *rest):
                return Sent("talk", *rest)
            case ("tools", int(index), "name"):
                return Sent("kit", index, "called")
            case ("tools", int(index), "parameters", *rest):
                return Sent("kit", index, "takes", *rest)
            case ("tools", *rest):
                return Sent("kit", *rest)
            case ("tool_choice",):
                return Sent("pick")
            case ("constraint",):
                return Sent("shape")
            case ("max_tokens",):
                return Sent("most")
            case ("min_tokens",):
                return Sent("least")
            case _:
                return Sent(*location)

    def spell(self, sent: Sent) -> str:
        return "/".join(map(str, sent))

    def status(self, error: ApiError) -> int:
        return 529 if isinstance(error, Unavailable) else error.status

    def error(
        self, error: ApiError, message: str, at: str | None, request_id: str
    ) -> dict[str, Any]:
        return {"oops": {"kind": error.code, "why": message, "spot": at}, "call": request_id}

    def headers(self, request_id: str, levels: Sequence[Level]) -> dict[str, str]:
        left = {f"toy-left-{level.what}": str(level.remaining) for level in levels}
        return {"toy-call": request_id, **left}

    def reference(self) -> Reference:
        return Reference(
            operations=(
                Operation("post", "/toy/say", "Say something.", Say),
                Operation("get", "/toy/hello", "Who is there."),
            ),
            error_schema={"type": "object", "required": ["oops"]},
        )


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + b"data: " + msgspec.json.encode(data) + b"\n\n"

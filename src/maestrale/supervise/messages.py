"""What the API process and the engine process say to each other.

One msgpack array of messages per frame, each frame led by its length (4 bytes, big-endian),
over a socket pair that only these two hold: no file to leave behind, and the death of either
side is an end of file at the other at once.
"""

from __future__ import annotations

from msgspec import Struct

from maestrale.engines.base import (
    Constraint,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    TokenDelta,
)

# API process → engine process


class Submit(Struct, tag=True, frozen=True):
    request: GenerationRequest


class Abort(Struct, tag=True, frozen=True):
    request_id: str


class Shutdown(Struct, tag=True, frozen=True):
    """Finish what is running for up to `grace` seconds, then exit."""

    grace: float


# engine process → API process


class Ready(Struct, tag=True, frozen=True):
    """The engine can take requests. `step_seconds`: how long its longest step should take,
    measured at start; `stats`: where its counters stood then.
    """

    info: EngineInfo
    step_seconds: float
    stats: EngineStats


class Failed(Struct, tag=True, frozen=True):
    """The engine could not start, or is lost; the process exits after this."""

    message: str


class Delta(Struct, tag=True, frozen=True):
    request_id: str
    delta: TokenDelta


class RequestFailed(Struct, tag=True, frozen=True):
    """This request can't be run; the engine goes on. `constraint`: its grammar is the reason."""

    request_id: str
    message: str
    constraint: bool = False


class Heartbeat(Struct, tag=True, frozen=True):
    """Sent every half second from a thread of its own, so a long step doesn't silence it.

    `stats.steps` standing still while requests are in flight means a hung engine.
    """

    stats: EngineStats


ToWorker = Submit | Abort | Shutdown
FromWorker = Ready | Failed | Delta | RequestFailed | Heartbeat


# API process ⇄ vetting process


class VetterStart(Struct, tag=True, frozen=True):
    """`model_dir`: whose vocabulary; "" for bytes. `memory`: limit in bytes, once it is loaded."""

    model_dir: str
    memory: int


class VetterReady(Struct, tag=True, frozen=True):
    """The vocabulary is loaded."""


class Vet(Struct, tag=True, frozen=True):
    constraint: Constraint


class Verdict(Struct, tag=True, frozen=True):
    """`fault` says what is wrong with the constraint; None: it compiles, `written` so."""

    fault: str | None
    written: str = ""


FromVetter = VetterReady | Verdict | Failed

"""What the parent and an API worker say to each other, over a socket pair that only they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from maestrale import errors
from maestrale.api.backend import About, Steering
from maestrale.api.operations.history import Event
from maestrale.config.settings import Settings
from maestrale.engines.base import Constraint, EngineInfo, GenerationRequest
from maestrale.errors import ApiError, EngineError, Location, MaestraleError
from maestrale.keys import Key
from maestrale.metrics.merged import MetricFamily
from maestrale.models.sampling_defaults import SamplingDefaults
from maestrale.supervise.messages import Abort, Delta, Failed
from maestrale.usage import UsageRow


class Fault(Struct, frozen=True):
    """A MaestraleError on its way from one process to the other; `error` names its class."""

    error: str
    message: str
    at: tuple[str | int, ...] | None = None
    code: str | None = None
    retry_after: int | None = None


def fault_of(error: MaestraleError) -> Fault:
    name = type(error).__name__
    if isinstance(error, ApiError):
        at = None if error.at is None else tuple(error.at)
        return Fault(name, error.message, at, error.code, error.retry_after)
    return Fault(name, str(error))


def error_of(fault: Fault) -> MaestraleError:
    """The same error again; an EngineError where its class takes more than a message."""
    kind: Any = getattr(errors, fault.error, EngineError)
    if issubclass(kind, ApiError):
        at = None if fault.at is None else Location(*fault.at)
        more = {"at": at, "code": fault.code, "retry_after": fault.retry_after}
    else:
        more = {}
    error: MaestraleError = kind(fault.message, **more)
    return error


# parent → worker


class Begin(Struct, tag=True, frozen=True):
    """The first message. `listeners` are inherited file descriptors: of the port's sockets.
    `settings` are those of `pack_settings`, and so are those of each of the `models`. `loaded`:
    deployments whose engines are there already, so nobody is let in before the worker can answer
    for them. `lenders`: folders in which servers lend that this one takes over from.
    """

    settings: bytes
    models: tuple[bytes, ...]
    workers: int
    listeners: tuple[int, ...]
    loaded: tuple[str, ...]
    lenders: tuple[str, ...] = ()


# In all of these `model` is the deployment that is meant, by its id.


class Attach(Struct, tag=True, frozen=True):
    """The deployment's engine is there. `folder`: the prepared model's."""

    model: str
    folder: str
    model_name: str
    info: EngineInfo
    sampling: SamplingDefaults


class ServerState(Struct, tag=True, frozen=True):
    """The deployment's state as /health reports it, and what its engine is now."""

    model: str
    state: str
    detail: str
    info: EngineInfo | None = None
    retry_at: float = 0.0  # monotonic, which all processes of a machine share


class Ended(Struct, tag=True, frozen=True):
    """This request came to no good end."""

    request_id: str
    fault: Fault


class Granted(Struct, tag=True, frozen=True):
    """What was asked for by this number is granted: a place, room in the queue, a verdict."""

    number: int


class Refused(Struct, tag=True, frozen=True):
    number: int
    fault: Fault


class Reply(Struct, tag=True, frozen=True):
    number: int
    body: bytes


class Report(Struct, tag=True, frozen=True):
    """Send a Snapshot, now."""


class Lend(Struct, tag=True, frozen=True):
    """Let the server that takes over have your streams, at a socket in this folder."""

    folder: str


class Retire(Struct, tag=True, frozen=True):
    """Take no more connections, finish what runs for up to `grace` seconds, and leave."""

    grace: float


# worker → parent


class Attached(Struct, tag=True, frozen=True):
    """It answers requests for this deployment now."""

    model: str


class Lending(Struct, tag=True, frozen=True):
    """The server that takes over can have its streams now."""


class Generate(Struct, tag=True, frozen=True):
    """Run this request; what comes of it are `Delta`s, or `Ended`."""

    model: str
    request: GenerationRequest


class AskForPlaces(Struct, tag=True, frozen=True):
    """Wait for places for so many sequences of this key, until `GiveBack`."""

    number: int
    model: str
    key: str
    sequences: int


class GiveBack(Struct, tag=True, frozen=True):
    number: int


class Room(Struct, tag=True, frozen=True):
    """Would such places be refused now?"""

    number: int
    model: str
    key: str
    sequences: int


class Take(Struct, tag=True, frozen=True):
    """May this key's next request come? It is counted if so; the `Reply` has its `Charge`."""

    number: int
    key: Key


class Reserve(Struct, tag=True, frozen=True):
    """Set tokens of this key's limits aside, for the request with this charge, if it has one; the
    `Reply` has what it is then.
    """

    number: int
    key: Key
    tokens: int
    charge: int | None


class Settle(Struct, tag=True, frozen=True):
    """A request has ended that had this charge, if any, and used so much; granted when that is
    written.
    """

    number: int
    key: Key | None
    charge: int | None
    row: UsageRow


class Levels(Struct, tag=True, frozen=True):
    """Where does this key stand with its limits? The `Reply` has a list of `Level`."""

    number: int
    key: Key
    reserved: int | None


class Check(Struct, tag=True, frozen=True):
    """Can this constraint be compiled? The `Reply` has it as it is written then."""

    number: int
    model: str
    constraint: Constraint
    key: str


class Ask(Struct, tag=True, frozen=True):
    """What is to be answered for all workers together."""

    number: int
    about: About
    model: str


class Steer(Struct, tag=True, frozen=True):
    """The operator wants this deployment loaded, or unloaded; the `Reply` is empty."""

    number: int
    model: str
    steering: Steering


class Noted(Struct, tag=True, frozen=True):
    """Something went wrong, for the status page."""

    event: Event


class Snapshot(Struct, tag=True, frozen=True):
    """The worker's metrics, all of them; sent every `SNAPSHOT_SECONDS`, and when asked for."""

    families: list[MetricFamily]
    requests: int  # in work


SNAPSHOT_SECONDS = 2.0

ToApiWorker = (
    Begin
    | Attach
    | ServerState
    | Delta
    | Ended
    | Granted
    | Refused
    | Reply
    | Report
    | Retire
    | Lend
)
FromApiWorker = (
    Attached
    | Lending
    | Generate
    | Abort
    | AskForPlaces
    | GiveBack
    | Room
    | Take
    | Reserve
    | Settle
    | Levels
    | Check
    | Ask
    | Steer
    | Noted
    | Snapshot
    | Failed
)


def pack_settings(settings: Settings) -> bytes:
    """As ASCII, since a path may hold any bytes, and then is no text that msgpack takes."""
    return json.dumps(msgspec.to_builtins(settings, enc_hook=str)).encode()


def unpack_settings(packed: bytes) -> Settings:
    def path(kind: type, value: Any) -> Path:
        assert kind is Path
        return Path(value)

    return msgspec.convert(json.loads(packed), Settings, dec_hook=path)

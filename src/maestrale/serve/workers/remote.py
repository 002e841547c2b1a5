"""What an API worker has in the place of engine, queue and vetter: it asks the parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from maestrale.api.accounts import Accounts, Charge, limits, number_of
from maestrale.api.admission import Admission
from maestrale.api.backend import About, Backend, Steering
from maestrale.api.deployment import READY_STATES, Deployment, deployment_id
from maestrale.api.operations.history import Event, FaultLog
from maestrale.api.rate import Level
from maestrale.api.usage_writer import PATIENCE
from maestrale.config.settings import Settings
from maestrale.engines.base import (
    Constraint,
    Engine,
    EngineHealth,
    EngineInfo,
    EngineState,
    EngineStats,
    GenerationRequest,
    TokenDelta,
)
from maestrale.engines.mailbox import Mailbox
from maestrale.errors import MaestraleError
from maestrale.keys import Key
from maestrale.metrics import ModelMetrics
from maestrale.serve.workers.messages import (
    Ask,
    AskForPlaces,
    Check,
    Ended,
    Generate,
    GiveBack,
    Granted,
    Levels,
    Noted,
    Refused,
    Reply,
    Reserve,
    Room,
    ServerState,
    Settle,
    Steer,
    Take,
    ToApiWorker,
    error_of,
)
from maestrale.supervise.channel import Channel
from maestrale.supervise.messages import Abort, Delta
from maestrale.usage import UsageRow


class ParentConnection:
    """The worker's end of the socket. When the parent is gone, so is this process."""

    def __init__(self, on_other: Callable[[Any], None]) -> None:
        """`on_other` gets the messages that are no answer to anything asked here."""
        self._channel = Channel(ToApiWorker, self._take, lambda _: os._exit(0))
        self._on_other = on_other
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = 0
        self.streams: dict[str, Mailbox] = {}
        """By request id: where the deltas of requests in the engine go."""

    async def open(self, sock: Any) -> None:
        await self._channel.open(sock)

    def send(self, message: msgspec.Struct) -> None:
        """Raises: EngineError when the message is too long to be sent."""
        self._channel.send(message)

    def number(self) -> int:
        """A fresh one for something to ask."""
        self._numbers += 1
        return self._numbers

    async def ask(self, number: int, message: msgspec.Struct) -> bytes:
        """Send what carries `number`, and wait until it is granted or answered.

        Raises: the error with which it is refused.
        """
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            self.send(message)
            return await future
        finally:
            del self._asked[number]
            if not future.done() or future.cancelled():
                self.send(GiveBack(number))  # nobody waits for it any more

    def end_all(self, error: MaestraleError) -> None:
        """Whatever still waits for the parent ends with `error`, which its clients are told."""
        for request_id, mailbox in self.streams.items():
            mailbox.fail(error)
            self.send(Abort(request_id))
        for future in self._asked.values():
            if not future.done():
                future.set_exception(error)

    def _take(self, message: Any) -> None:
        match message:
            case Delta(request_id, delta):
                if request_id in self.streams:
                    self.streams[request_id].put(delta)
            case Ended(request_id, fault):
                if request_id in self.streams:
                    self.streams[request_id].fail(error_of(fault))
            case Granted(number):
                self._settle(number, b"")
            case Reply(number, body):
                self._settle(number, body)
            case Refused(number, fault):
                future = self._asked.get(number)
                if future is not None and not future.done():
                    future.set_exception(error_of(fault))
            case _:
                self._on_other(message)

    def _settle(self, number: int, body: bytes) -> None:
        future = self._asked.get(number)
        if future is not None and not future.done():
            future.set_result(body)


class RemoteEngine:
    """The Engine protocol, by way of the parent, which has the engine and its ledger."""

    def __init__(self, connection: ParentConnection, model: str, info: EngineInfo) -> None:
        """`model`: the deployment's id."""
        self._connection = connection
        self._model = model
        self.info = info
        self.state = EngineHealth("ready")

    async def start(self) -> None:
        """The parent has started it."""

    async def close(self, grace: float = 0.0) -> None:
        """The parent closes it."""

    async def health(self) -> EngineHealth:
        return self.state

    def describe(self) -> EngineInfo:
        return self.info

    def stats(self) -> EngineStats:
        """None of its own: the parent tells the engine's."""
        return EngineStats()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """Raises: as the parent's engine."""
        mailbox = self._connection.streams[request.request_id] = Mailbox()
        try:
            self._connection.send(Generate(self._model, request))
            async for delta in mailbox:
                yield delta
        finally:
            del self._connection.streams[request.request_id]
            if not mailbox.over:
                self._connection.send(Abort(request.request_id))


class RemoteVetter:
    """The parent's vetting processes: what one worker had vetted, all of them know."""

    def __init__(self, connection: ParentConnection, model: str) -> None:
        self._connection = connection
        self._model = model

    async def vet(self, constraint: Constraint, key: str = "-") -> Constraint:
        """See `ConstraintVetter.vet`."""
        number = self._connection.number()
        vetted = await self._connection.ask(number, Check(number, self._model, constraint, key))
        written: Constraint = msgspec.msgpack.decode(vetted, type=Constraint)
        return written


class RemoteAdmission(Admission):
    """The parent's queue: exact, and fair between keys whichever worker they reach."""

    def __init__(self, connection: ParentConnection, model: str) -> None:
        super().__init__(0)
        self._connection = connection
        self._model = model

    async def check_room(self, key: str, sequences: int, max_num_seqs: int) -> None:
        """Whether `slot` would be refused now. Raises: Unavailable."""
        number = self._connection.number()
        await self._connection.ask(number, Room(number, self._model, key, sequences))

    @contextlib.asynccontextmanager
    async def slot(self, key: str, sequences: int, max_num_seqs: int) -> AsyncIterator[None]:
        """As `Admission.slot`; `max_num_seqs` is known to the parent."""
        number = self._connection.number()
        self.requests += 1
        self.idle.clear()
        try:
            await self._connection.ask(number, AskForPlaces(number, self._model, key, sequences))
            yield
        finally:
            self._connection.send(GiveBack(number))
            self.requests -= 1
            if not self.requests:
                self.idle.set()


class RemoteAccounts(Accounts):
    """The parent's: as exact as one process's. A key without limits asks for nothing."""

    def __init__(self, connection: ParentConnection) -> None:
        self._connection = connection

    async def take_request(self, key: Key | None) -> Charge | None:
        """Raises: RateLimited."""
        if key is None or not limits(key, "requests"):
            return None
        number = self._connection.number()
        body = await self._connection.ask(number, Take(number, key))
        return msgspec.msgpack.decode(body, type=Charge | None)

    async def reserve(self, key: Key | None, tokens: int, charge: Charge | None) -> Charge | None:
        """Raises: RateLimited."""
        if key is None or not limits(key, "tokens"):
            return charge
        number = self._connection.number()
        asked = Reserve(number, key, tokens, number_of(charge))
        body = await self._connection.ask(number, asked)
        return msgspec.msgpack.decode(body, type=Charge | None) or charge

    async def settle(self, key: Key | None, charge: Charge | None, row: UsageRow) -> None:
        """The parent reads messages in order: what is asked for after it knows of it."""
        number = self._connection.number()
        asked = Settle(number, key, number_of(charge), row)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._connection.ask(number, asked), PATIENCE)

    async def levels(self, key: Key | None, charge: Charge | None) -> list[Level]:
        """Where the key stands, by the parent."""
        if key is None or not (limits(key, "requests") or limits(key, "tokens")):
            return []
        number = self._connection.number()
        body = await self._connection.ask(
            number, Levels(number, key, None if charge is None else charge.minute)
        )
        return msgspec.msgpack.decode(body, type=list[Level])

    async def close(self) -> None:
        """The parent's are not ours to close."""


class ForwardedEvents(FaultLog):
    """What goes wrong here is told to the parent, whose status page shows it."""

    def __init__(self, connection: ParentConnection) -> None:
        super().__init__()
        self._connection = connection

    def add(self, event: Event) -> None:
        self._connection.send(Noted(event))


class WorkerDeployment(Deployment):
    """One whose engine the parent has; its state is what the parent told last."""

    told = EngineHealth("starting", "The server is starting.")

    def take(self, state: ServerState) -> None:
        """What the parent says of it now."""
        self.told = EngineHealth(_state(state.state), state.detail)
        self.retry_at = state.retry_at
        if isinstance(self.engine, RemoteEngine):
            self.engine.state = self.told
            if state.info is not None:
                self.engine.info = state.info

    async def health(self) -> EngineHealth:
        """As the parent told it last; this worker itself may still be preparing."""
        if self.engine is None and self.told.state in READY_STATES:
            return EngineHealth("starting", "The API process is starting.")
        return self.told

    def _watch(self, engine: Engine) -> ModelMetrics:
        """Its answers; the parent tells of the engine."""
        return self._registry.watch(None, self.names[0], lambda: 0)


class WorkerBackend(Backend):
    """What the routes of one worker stand on."""

    def __init__(
        self,
        settings: Settings,
        models: Sequence[Settings],
        connection: ParentConnection,
    ) -> None:
        self._connection = connection
        super().__init__(settings, models)

    def take(self, state: ServerState) -> None:
        """What the parent says of one deployment."""
        deployment = self.deployments[state.model]
        assert isinstance(deployment, WorkerDeployment)
        deployment.take(state)

    async def ask_all(self, about: About, model: str = "") -> bytes | None:
        """See `Backend.ask_all`: the parent gathers it."""
        number = self._connection.number()
        return await self._connection.ask(number, Ask(number, about, model))

    async def steer(self, model: str, steering: Steering) -> None:
        """See `Backend.steer`: the parent does it."""
        number = self._connection.number()
        await self._connection.ask(number, Steer(number, model, steering))

    def _make_accounts(self) -> Accounts:
        return RemoteAccounts(self._connection)

    def _make_events(self) -> FaultLog:
        return ForwardedEvents(self._connection)

    def _deploy(self, settings: Settings) -> Deployment:
        admission = RemoteAdmission(self._connection, deployment_id(settings))
        return WorkerDeployment(settings, admission, self.metrics, self.events)


def _state(name: str) -> EngineState:
    state: EngineState = msgspec.convert(name, EngineState)
    return state

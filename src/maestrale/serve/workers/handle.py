"""The parent's end of one API worker: its process, what it asks for, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

import msgspec

from maestrale.api.accounts import Charge, KeyAccounts
from maestrale.api.backend import About, Steering
from maestrale.api.operations.history import Event
from maestrale.engines.base import GenerationRequest
from maestrale.errors import EngineError, MaestraleError
from maestrale.logs import LOGGER
from maestrale.metrics.merged import MetricFamily
from maestrale.serve.deployment import DeploymentHost
from maestrale.serve.workers.cut import Work, usage_of_cut
from maestrale.serve.workers.messages import (
    Ask,
    AskForPlaces,
    Attach,
    Attached,
    Check,
    Ended,
    FromApiWorker,
    Generate,
    GiveBack,
    Granted,
    Lend,
    Lending,
    Levels,
    Noted,
    Refused,
    Reply,
    Report,
    Reserve,
    Retire,
    Room,
    Settle,
    Snapshot,
    Steer,
    Take,
    fault_of,
)
from maestrale.supervise.child import Child
from maestrale.supervise.messages import Abort, Delta, Failed
from maestrale.usage import beyond

worker_log = logging.getLogger("maestrale.worker")


class Shared(Protocol):
    """What all workers share, as the parent has it."""

    @property
    def accounts(self) -> KeyAccounts: ...
    def host(self, model: str) -> DeploymentHost: ...
    async def answer(self, about: About, model: str) -> bytes: ...
    async def steer(self, model: str, steering: Steering) -> None: ...
    async def charge(self, answer: str, tokens: int) -> int | None: ...
    def note(self, event: Event) -> None: ...


class WorkerHandle:
    """One worker. `attached` is done when it answers for all that is loaded, `dead` when it is
    gone.
    """

    def __init__(self, parent: Shared, place: int, pass_fds: tuple[int, ...]) -> None:
        """`place`: which of the port's sockets it has."""
        self.place = place
        self._parent = parent
        self._child = Child(
            "maestrale.serve.workers.worker",
            FromApiWorker,
            self._take,
            worker_log,
            pass_fds=pass_fds,
            own_output=True,
        )
        self._running: dict[str, asyncio.Task[None]] = {}  # generations, by request id
        self._asked: dict[int, asyncio.Task[None]] = {}  # places, verdicts, answers
        self._work: dict[str, Work] = {}  # what those that run have had so far
        self._charges: set[int] = set()  # of its requests that are not settled
        self._reported = asyncio.Event()
        self._lends = asyncio.Event()
        self._retiring = False
        self._loaded: set[str] = set()  # deployments that it was told of
        self._answers: set[str] = set()  # those of them that it answers for
        self.attached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failed = ""
        self.snapshot = Snapshot([], 0)
        self.heard = self.born = time.monotonic()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def dead(self) -> asyncio.Future[str]:
        return self._child.dead

    @property
    def state(self) -> str:
        if self._retiring:
            return "retiring"
        return "ready" if self._answers else "starting"

    @property
    def retiring(self) -> bool:
        return self._retiring

    @property
    def families(self) -> list[MetricFamily]:
        return self.snapshot.families

    async def spawn(self, first: msgspec.Struct) -> None:
        """Raises: EngineError when the system has no room for another process."""
        await self._child.spawn()
        self._child.send(first)

    def send(self, message: msgspec.Struct) -> None:
        self._child.send(message)

    def attach(self, message: Attach) -> None:
        """A deployment's engine is there: it shall answer requests for it."""
        if message.model in self._loaded:
            return
        self._loaded.add(message.model)
        if self.attached.done():
            self.attached = asyncio.get_running_loop().create_future()
        self.send(message)

    def kill(self, cause: str) -> None:
        self._child.kill(cause)

    def retire(self, grace: float) -> None:
        """It takes no more connections, and leaves after its last answer."""
        self._retiring = True
        self.send(Retire(grace))

    async def lend(self, folder: str, patience: float) -> None:
        """Have it lend its streams at a socket in this folder."""
        self.send(Lend(folder))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._lends.wait(), patience)

    async def refresh(self, patience: float) -> None:
        """Have its metrics of this moment, or those of the last seconds if it is slow."""
        self._reported.clear()
        self.send(Report())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._reported.wait(), patience)

    async def clear(self) -> int:
        """It is dead: end what it had running, give its places back. How many were cut."""
        cut, rows = len(self._running), usage_of_cut(self._work.values(), self._name)
        for charge in self._charges:
            self._parent.accounts.drop(charge)
        self._charges.clear()
        for task in (*self._running.values(), *self._asked.values()):
            task.cancel()
        for answer, row in rows.items():
            first = answer.partition(".")[0]
            counted = await self._parent.charge(first, row.completion_tokens)
            self._parent.accounts.settle(
                None, None, row if counted is None else beyond(row, counted)
            )
        return cut

    def _name(self, model: str) -> str:
        return self._parent.host(model).deployment.name

    def _take(self, message: Any) -> None:
        match message:
            case Generate(model, request):
                self._keep(self._running, request.request_id, self._generate(model, request))
            case Abort(request_id):
                if request_id in self._running:
                    self._running[request_id].cancel()
            case AskForPlaces(number):
                self._keep(self._asked, number, self._hold(message))
            case GiveBack(number):
                if number in self._asked:
                    self._asked[number].cancel()
            case Room():
                self._look(message)
            case Take(number, key):
                self._limit(number, partial(self._parent.accounts.take_request, key))
            case Reserve(number, key, tokens, charge):
                reserve = partial(self._parent.accounts.reserve, key, tokens, charge)
                self._limit(number, reserve)
            case Settle():
                self._settle(message)
            case Levels(number, key, reserved):
                self._limit(number, partial(self._parent.accounts.levels, key, reserved))
            case Check(number, model, constraint, key):
                vetter = self._parent.host(model).vetter
                if vetter is not None:
                    vetting = vetter.vet(constraint, key)
                    self._keep(self._asked, number, self._reply(number, vetting))
            case Ask(number, about, model):
                self._keep(self._asked, number, self._answer(number, about, model))
            case Steer(number, model, steering):
                work = self._parent.steer(model, steering)
                self._keep(self._asked, number, self._reply(number, work))
            case Noted(event):
                self._parent.note(event)
            case Snapshot():
                self.snapshot, self.heard = message, time.monotonic()
                self._reported.set()
            case Attached(model):
                self._answers.add(model)
                if self._answers >= self._loaded and not self.attached.done():
                    self.attached.set_result(None)
            case Lending():
                self._lends.set()
            case Failed(reason):
                self.failed = reason
                self.kill(reason)

    def _keep(self, tasks: dict[Any, asyncio.Task[None]], key: Any, work: Any) -> None:
        coroutine: Coroutine[Any, Any, None] = work
        task = tasks[key] = asyncio.create_task(coroutine)
        task.add_done_callback(lambda _: tasks.pop(key, None))

    async def _generate(self, model: str, request: GenerationRequest) -> None:
        engine = self._parent.host(model).engine
        work = self._work[request.request_id] = Work(model, request)
        try:
            if engine is None:
                raise EngineError("The engine has not started yet.")
            async with aclosing(engine.generate(request)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    work.take(delta)
                    self.send(Delta(request.request_id, delta))
        except MaestraleError as error:
            self.send(Ended(request.request_id, fault_of(error)))
        except Exception:
            LOGGER.exception("A request failed")
            self.send(Ended(request.request_id, fault_of(EngineError("The engine failed."))))
        finally:
            self._work.pop(request.request_id, None)

    async def _hold(self, place: AskForPlaces) -> None:
        """Places for one request, until it leaves."""
        deployment, number = self._parent.host(place.model).deployment, place.number
        slot = deployment.admission.slot(place.key, place.sequences, deployment.max_num_seqs)
        try:
            async with slot:
                self.send(Granted(number))
                await asyncio.get_running_loop().create_future()  # until cancelled
        except MaestraleError as error:
            self.send(Refused(number, fault_of(error)))

    def _look(self, room: Room) -> None:
        deployment, number = self._parent.host(room.model).deployment, room.number
        try:
            deployment.admission.check(room.key, room.sequences, deployment.max_num_seqs)
        except MaestraleError as error:
            self.send(Refused(number, fault_of(error)))
        else:
            self.send(Granted(number))

    def _limit(self, number: int, work: Callable[[], object]) -> None:
        """Done at once, in the order in which it was asked for."""
        try:
            done = work()
            if isinstance(done, Charge):
                self._charges.add(done.number)
            self.send(Reply(number, msgspec.msgpack.encode(done)))
        except MaestraleError as error:
            self.send(Refused(number, fault_of(error)))

    def _settle(self, message: Settle) -> None:
        """Charged at once; the worker hears of it when that is written."""
        if message.charge is not None:
            self._charges.discard(message.charge)
        written = self._parent.accounts.settle(message.key, message.charge, message.row)
        written.add_done_callback(lambda _: self.send(Granted(message.number)))

    async def _reply(self, number: int, work: Awaitable[object]) -> None:
        try:
            self.send(Reply(number, msgspec.msgpack.encode(await work)))
        except MaestraleError as error:
            self.send(Refused(number, fault_of(error)))

    async def _answer(self, number: int, about: About, model: str) -> None:
        self.send(Reply(number, await self._parent.answer(about, model)))

"""ConstraintVetter: schemas, regexes and grammars are compiled in a disposable process first.

A hostile or merely huge one can take minutes and gigabytes. Here it takes a few seconds and a
process that is thrown away, and neither the engine nor the API process ever sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from maestrale.engines.base import Constraint
from maestrale.errors import ConstraintError, EngineError, Unavailable
from maestrale.supervise.child import Child
from maestrale.supervise.messages import Failed, FromVetter, Verdict, Vet, VetterReady, VetterStart
from maestrale.supervise.turns import FairTurns

LABEL = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}

# A constraint is too slow once its process ran for this part of the time. On a machine that is
# busy with other things that may take so many times as long; one that stands still is replaced.
BUSY = 0.5
PERIODS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VettingLimits:
    """Times in seconds, memory in bytes beyond what a process with its vocabulary holds."""

    time: float = 5.0  # for one constraint; settings.grammar_timeout
    memory: int = 512 * 1024 * 1024
    processes: int = 3
    of_one_key: int = 2  # of the processes: who floods leaves one to the others
    waiting: float = 30.0  # for a free process
    idle: float = 60.0  # after which a process is retired
    start: float = 60.0  # for a process to load its vocabulary
    cached: int = 1024  # verdicts kept
    cached_text: int = 32 * 1024 * 1024  # characters of what was written, of all that are kept
    # How long a verdict "too slow", or by the death of a process, is believed: load passes, and
    # a process may also die by another's hand.
    slow_cached: float = 60.0


@dataclass(frozen=True)
class _Outcome:
    fault: str | None  # None: it compiles
    written: str = ""  # so
    expires: float = float("inf")
    fatal: bool = False  # its processes died: the next time it is tried alone


class ConstraintVetter:
    """Says whether constraints can be compiled within limits. Starts no process before it must."""

    def __init__(self, model_dir: str, limits: VettingLimits | None = None) -> None:
        """`model_dir`: the prepared model whose vocabulary counts; "" for bytes."""
        self._model_dir = model_dir
        self._limits = limits or VettingLimits()
        self._known: OrderedDict[bytes, _Outcome] = OrderedDict()
        self._text = 0  # characters written, of all that are known
        self._under_way: dict[bytes, asyncio.Task[_Outcome]] = {}
        self._wanted: Counter[bytes] = Counter()  # by how many requests
        self._turns = FairTurns(self._limits.processes, self._limits.of_one_key)
        self._alone = asyncio.Lock()  # held by one that takes all turns
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    async def vet(self, constraint: Constraint, key: str = "-") -> Constraint:
        """The constraint with what is `written` of it, once it compiles. Keys take turns at it.

        Raises: ConstraintError when it doesn't, or takes too long or too much memory;
        Unavailable when too many others are being compiled, or no process can be had.
        """
        digest = hashlib.sha256(msgspec.msgpack.encode(constraint)).digest()
        outcome = self._known.get(digest)
        if outcome is not None and time.monotonic() < outcome.expires:
            self._known.move_to_end(digest)
        else:
            task = self._under_way.get(digest)
            if task is None or task.done():
                task = asyncio.create_task(self._find_out(constraint, digest, key))
                self._under_way[digest] = task
                task.add_done_callback(lambda done: self._note(digest, done))
            self._wanted[digest] += 1
            try:
                outcome = await asyncio.shield(task)  # others may wait for the same
            except asyncio.CancelledError:
                if self._closed and task.cancelled():
                    raise Unavailable("The server is stopping.", retry_after=1) from None
                raise
            finally:
                self._wanted[digest] -= 1
                if not self._wanted[digest]:
                    del self._wanted[digest]
        if outcome.fault is not None:
            raise ConstraintError(outcome.fault)
        return structs.replace(constraint, written=outcome.written)

    async def close(self) -> None:
        """End all processes."""
        self._closed = True
        for task in tuple(self._under_way.values()):
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await asyncio.gather(*(process.end() for process in tuple(self._all)))

    async def release(self) -> None:
        """End the processes that have nothing to do now; `vet` starts others."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(process.end() for process in idle))

    @property
    def pids(self) -> list[int]:
        """The processes there are now."""
        return [process.pid for process in self._all]

    def _note(self, digest: bytes, task: asyncio.Task[_Outcome]) -> None:
        if self._under_way.get(digest) is task:
            del self._under_way[digest]
        if task.cancelled() or task.exception() is not None:
            return
        outcome = task.result()
        if before := self._known.pop(digest, None):
            self._text -= len(before.written)
        self._known[digest] = outcome
        self._text += len(outcome.written)
        limits = self._limits
        while len(self._known) > limits.cached or self._text > limits.cached_text:
            _, forgotten = self._known.popitem(last=False)
            self._text -= len(forgotten.written)

    async def _find_out(self, constraint: Constraint, digest: bytes, key: str) -> _Outcome:
        known = self._known.get(digest)
        fatal = known is not None and known.fatal
        places = self._limits.processes if fatal else 1
        # Who takes them all is no flood, and not held to what a key may have.
        keys = [key] if places == 1 else [f"{key} {place}" for place in range(places)]
        try:
            await asyncio.wait_for(self._take_turns(keys), self._limits.waiting)
        except TimeoutError:
            raise Unavailable(
                "Too many grammars are being compiled; try again.", retry_after=2
            ) from None
        try:
            if not self._wanted[digest]:  # who asked has left
                raise asyncio.CancelledError
            return await self._judge(constraint)
        finally:
            for each in keys:
                self._turns.release(each)

    async def _take_turns(self, keys: list[str]) -> None:
        """Wait for a place for each of them. Cancelled, it holds nothing."""
        if len(keys) == 1:
            await self._turns.acquire(keys[0])
            return
        held = []
        try:
            async with self._alone:  # two that each hold a part would wait for ever
                for key in keys:
                    await self._turns.acquire(key)
                    held.append(key)
        except asyncio.CancelledError:
            for key in held:
                self._turns.release(key)
            raise

    async def _judge(self, constraint: Constraint) -> _Outcome:
        label = LABEL[constraint.kind]
        stalled = False
        for _ in range(2):  # a process may also die, or stand still, by another's hand
            try:
                verdict = await self._vet_in_a_process(constraint)
            except _Stalled:
                stalled = True
            except TimeoutError:
                seconds = f"{self._limits.time:g} s"
                return _Outcome(
                    f"This {label} took longer than {seconds} to compile. Simplify it.",
                    expires=time.monotonic() + self._limits.slow_cached,
                )
            except EngineError as error:
                return _Outcome(str(error))
            else:
                if verdict is not None:
                    return _Outcome(verdict.fault, verdict.written)
                stalled = False
        if stalled:
            raise Unavailable("Grammars can't be checked at the moment.", retry_after=2)
        return _Outcome(
            f"This {label} can't be compiled: it takes too much memory, or breaks the compiler. "
            "Simplify it.",
            expires=time.monotonic() + self._limits.slow_cached,
            fatal=True,
        )

    async def _vet_in_a_process(self, constraint: Constraint) -> Verdict | None:
        """The verdict; None when the process died over it. Raises: TimeoutError, _Stalled."""
        process = self._idle.pop() if self._idle else await self._start()
        try:
            verdict = await process.vet(constraint)
        except BaseException:
            await process.end()
            raise
        if verdict is None or self._closed:
            await process.end()
        else:
            self._idle.append(process)
        return verdict

    async def _start(self) -> _Process:
        if self._closed:
            raise Unavailable("The server is stopping.", retry_after=1)
        process = _Process(self._limits, self._retired)
        self._all.add(process)
        try:
            await process.start(self._model_dir)
        except (EngineError, TimeoutError) as error:
            logger.error("%s", error)
            raise Unavailable("Grammars can't be checked at the moment.", retry_after=2) from error
        return process

    def _retired(self, process: _Process) -> None:
        self._all.discard(process)
        if process in self._idle:
            self._idle.remove(process)


class _Stalled(Exception):
    """The time is over, but the process hardly ran: it is suspended, or the machine busy."""


class _Process:
    """One vetting process, from start to end."""

    def __init__(self, limits: VettingLimits, on_end: Callable[[_Process], None]) -> None:
        self._limits = limits
        self._child = Child("maestrale.supervise.vet_worker", FromVetter, self._take, logger)
        self._answer: asyncio.Future[FromVetter] = asyncio.get_running_loop().create_future()
        self._retire: asyncio.TimerHandle | None = None
        self._on_end = on_end
        self._child.dead.add_done_callback(lambda _: on_end(self))

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return not self._child.dead.done()

    async def start(self, model_dir: str) -> None:
        """Raises: EngineError with the reason."""
        try:
            await self._child.spawn()
        except EngineError:
            self._on_end(self)
            raise
        try:
            self._send(VetterStart(model_dir, self._limits.memory))
            first = await self._answered(self._limits.start)
        except BaseException:
            await self.end()
            raise
        if not isinstance(first, VetterReady):
            await self.end()
            reason = first.message if isinstance(first, Failed) else self._child.last_lines
            raise EngineError(f"The process that checks grammars could not start: {reason}")

    async def vet(self, constraint: Constraint) -> Verdict | None:
        """Its verdict; None when the process died.

        Raises: TimeoutError, the process being busy still; _Stalled when it never was; EngineError
        when the constraint is too long to be sent.
        """
        if self._retire is not None:
            self._retire.cancel()
        begun = ran = _processor_time(self.pid)
        self._send(Vet(constraint))
        for _ in range(PERIODS):
            with contextlib.suppress(TimeoutError):
                answer = await self._answered(self._limits.time)
                break
            before, ran = ran, _processor_time(self.pid)
            if ran - begun >= self._limits.time * BUSY:
                raise TimeoutError
            if ran == before:
                raise _Stalled
        else:
            raise _Stalled
        loop = asyncio.get_running_loop()
        self._retire = loop.call_later(self._limits.idle, self._child.kill, "idle")
        return answer if isinstance(answer, Verdict) else None

    async def end(self) -> None:
        if self._retire is not None:
            self._retire.cancel()
        self._child.kill("no longer needed")
        await asyncio.shield(self._child.dead)

    def _send(self, message: msgspec.Struct) -> None:
        """Raises: EngineError (too long)."""
        self._answer = asyncio.get_running_loop().create_future()
        self._child.send(message)

    async def _answered(self, seconds: float) -> FromVetter | None:
        """What it answers; None when it dies. Raises: TimeoutError."""
        either: set[asyncio.Future[Any]] = {self._answer, self._child.dead}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._answer.done():
            return self._answer.result()
        if self._child.dead.done():
            return None
        raise TimeoutError

    def _take(self, message: FromVetter) -> None:
        if not self._answer.done():
            self._answer.set_result(message)


def _processor_time(pid: int) -> float:
    """Seconds that the process ran so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:  # it is gone
        return 0.0

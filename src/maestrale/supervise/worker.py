"""The engine process: builds one engine, runs what it is sent, and never outlives its parent.

    python -m maestrale.supervise.worker --fd N [--engine NAME]

`N` is its end of the socket pair. The first message is the EngineConfig. The engine and the
requests live on the event loop of the main thread; two threads own the socket, so heartbeats
go out and the parent's death is seen even while the loop is held by a long step.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, NoReturn

import msgspec

from maestrale.engines.base import (
    CALIBRATION_ID,
    Engine,
    EngineConfig,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    Sampling,
)
from maestrale.engines.registry import build_engine, import_engine
from maestrale.errors import ConstraintError, EngineDied, EngineError, MaestraleError
from maestrale.supervise.channel import blocking_messages, frames, pack
from maestrale.supervise.leash import take_leash
from maestrale.supervise.messages import (
    Abort,
    Delta,
    Failed,
    Heartbeat,
    Ready,
    RequestFailed,
    Shutdown,
    Submit,
    ToWorker,
)

HEARTBEAT_SECONDS = 0.5
WATCH_SECONDS = 1.0
CALIBRATION_TOKENS = 8
QUICK = 1.5  # seconds for a step: the watchdog waits longer than that for any
LAST_WORDS_SECONDS = 2.0

logger = logging.getLogger(__name__)


class SupervisorConnection:
    """The worker's end of the socket: one thread reads it, one writes and beats."""

    def __init__(self, sock: socket.socket) -> None:
        self.stats: Callable[[], EngineStats] = EngineStats
        self._sock = sock
        self._outbox: list[bytes] = []
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def listen(self, incoming: Any, on_message: Callable[[Any], None]) -> None:
        """Hand each message of `incoming` to the event loop; exit when there are no more."""

        def read() -> None:
            try:
                for messages in incoming:
                    self._loop.call_soon_threadsafe(
                        lambda batch: [*map(on_message, batch)], messages
                    )
            except (EngineError, msgspec.DecodeError, OSError):
                logger.exception("The API process sent what is no message.")
            os._exit(0)  # the parent is gone

        threading.Thread(target=read, daemon=True).start()

    def send(self, message: msgspec.Struct) -> None:
        """Send with all else that this turn of the event loop sends."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(pack(message))

    def leave(self, code: int) -> NoReturn:
        """Write out what is pending and end the process at once, whatever still runs in it."""
        self._flush()
        self._frames.put(None)
        self._writer.join(LAST_WORDS_SECONDS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        for frame in frames(outbox):
            self._frames.put(frame)

    def _write(self) -> None:
        beat = time.monotonic()
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    frame = self._frames.get(timeout=max(0.0, beat - time.monotonic()))
                    if frame is None:
                        return
                    self._sock.sendall(frame)
                if time.monotonic() >= beat:
                    beat = time.monotonic() + HEARTBEAT_SECONDS
                    self._sock.sendall(next(frames([pack(Heartbeat(self.stats()))])))
        except OSError:
            os._exit(0)  # the parent is gone


class EngineWorker:
    """Runs requests on the engine and sends on what comes out."""

    def __init__(self, engine: Engine, connection: SupervisorConnection) -> None:
        self._engine = engine
        self._connection = connection
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: asyncio.Task[None] | None = None

    def take(self, message: ToWorker) -> None:
        match message:
            case Submit(request):
                task = asyncio.create_task(self._run(request))
                self._tasks[request.request_id] = task
                task.add_done_callback(lambda _: self._tasks.pop(request.request_id, None))
            case Abort(request_id):
                if request_id in self._tasks:
                    self._tasks[request_id].cancel()
            case Shutdown(grace):
                self._ending = asyncio.create_task(self._end(grace))

    async def watch(self) -> NoReturn:
        """Leave when the engine is lost, also while no request is there to find out."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            health = await self._engine.health()
            if health.state == "dead" and self._ending is None:
                self._lost(health.detail)

    async def _run(self, request: GenerationRequest) -> None:
        try:
            async with aclosing(self._engine.generate(request)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    self._connection.send(Delta(request.request_id, delta))
        except EngineDied as error:
            self._lost(str(error))
        except MaestraleError as error:
            grammar = isinstance(error, ConstraintError)
            self._connection.send(RequestFailed(request.request_id, str(error), grammar))
        except Exception as error:
            logger.exception("The engine failed.")
            self._lost(f"{type(error).__name__}: {error}")

    def _lost(self, reason: str) -> NoReturn:
        self._connection.send(Failed(reason))
        self._connection.leave(1)

    async def _end(self, grace: float) -> None:
        await self._engine.close(grace)
        await asyncio.sleep(0)  # the last deltas reach the outbox
        self._connection.leave(0)


async def calibrate(engine: Engine, info: EngineInfo) -> float:
    """Seconds that the longest step should take: what the engine says, else a short prompt's time,
    scaled to a full step.

    The first request may also pay for what an engine does only once. So where it is not quick, a
    second one is measured.
    """
    if info.step_seconds is not None:
        return info.step_seconds
    scale = max(1.0, info.max_num_batched_tokens / CALIBRATION_TOKENS)
    expected = await _step_seconds(engine, 1) * scale
    if expected < QUICK:
        return expected
    return await _step_seconds(engine, 2) * scale


async def _step_seconds(engine: Engine, first_token: int) -> float:
    embeds = engine.describe().task != "generate"
    request = GenerationRequest(
        request_id=CALIBRATION_ID,
        prompt=tuple(range(first_token, first_token + CALIBRATION_TOKENS)),
        max_tokens=0 if embeds else 1,
        seed=0,
        sampling=Sampling(temperature=0.0),
        embed=embeds,
    )
    begun = time.monotonic()
    async for _ in engine.generate(request):
        pass
    return time.monotonic() - begun


async def serve(sock: socket.socket) -> None:
    """Build the engine from the first message, then run requests until told to stop."""
    incoming = blocking_messages(sock, EngineConfig | Submit | Abort | Shutdown)
    first = next(incoming, None)
    if first is None:
        return  # the parent is gone
    config = first[0]
    connection = SupervisorConnection(sock)
    pending: list[ToWorker] = []
    take: Callable[[ToWorker], None] = pending.append
    connection.listen(incoming, lambda message: take(message))
    try:
        engine = build_engine(config)
        await engine.start()
        step_seconds = await calibrate(engine, engine.describe())
    except MaestraleError as error:
        connection.send(Failed(str(error)))
        connection.leave(1)
    except Exception as error:
        logger.exception("The engine could not start.")
        connection.send(Failed(f"{type(error).__name__}: {error}"))
        connection.leave(1)
    worker = EngineWorker(engine, connection)
    take = worker.take
    connection.stats = engine.stats
    connection.send(Ready(engine.describe(), step_seconds, engine.stats()))
    for message in pending:
        worker.take(message)
    await worker.watch()


# A step waits for the interpreter so often that each time must be short, whatever else runs.
SWITCH_INTERVAL = 0.0005  # seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--engine", help="most likely this one: import it before the config comes")
    options = parser.parse_args()
    sock = take_leash(options.fd, "maestrale-engine")
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL)
    if options.engine is not None:
        with contextlib.suppress(Exception):  # `serve` meets it again, and tells it
            import_engine(options.engine)
    asyncio.run(serve(sock))


if __name__ == "__main__":
    main()

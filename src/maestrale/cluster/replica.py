"""The replica: an actor of Ray Serve that owns one engine process.

The engine's death is seen at once, told to every API process, and ends the actor: one that lives
on without an engine would swallow requests. Ray Serve starts another in its place.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import AsyncIterator
from typing import NoReturn

import msgspec
import ray
from ray import serve

from maestrale.cluster.environment import bind_to_node, with_level_here
from maestrale.cluster.node import check_version, model_folder
from maestrale.cluster.session import StreamSession, api_of
from maestrale.cluster.stages import check_model_on_nodes, reserved_here
from maestrale.cluster.wire import Beat, Bye, Hello, Lost, ReplicaSpec, pack, to_replica
from maestrale.engines.base import EngineConfig, GenerationRequest
from maestrale.errors import EngineError, MaestraleError
from maestrale.supervise.engine_process import EngineProcess
from maestrale.supervise.messages import Delta, RequestFailed
from maestrale.supervise.watchdog import Patience

BEAT = 0.5
LAST_WORDS = 0.5  # seconds for the news of the engine's death to be sent
_requests = msgspec.msgpack.Decoder(GenerationRequest)

bind_to_node()


class StartFailed(Exception):
    """Its text, between marks that survive Ray's tracebacks, is for the person at the API."""

    BEGIN, END = "<<maestrale:", ":maestrale>>"

    def __init__(self, reason: str) -> None:
        super().__init__(f"{self.BEGIN}{reason}{self.END}")


class EngineReplica:
    """`run`, `listen` and `control` are called by API processes only."""

    async def __init__(self, spec: bytes) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        """Prepare the model, start the engine. Raises: StartFailed."""
        self._sessions: dict[str, StreamSession] = {}  # by API process
        self._owner: dict[str, StreamSession] = {}  # by wire id
        try:
            decoded = msgspec.msgpack.decode(spec, type=ReplicaSpec)
            self._model, self._deployed_by = decoded.model, decoded.deployed_by
            config = await asyncio.to_thread(_config_here, decoded)
            self._process = EngineProcess(config, Patience(), self._take, lambda: bool(self._owner))
            self._info = await self._process.start()
        except MaestraleError as error:
            raise StartFailed(str(error)) from error
        self._dead = ""
        self._guard = asyncio.get_running_loop().create_task(self._watch_engine())

    async def check_health(self) -> None:
        """For Ray Serve. The engine's own watchdog finds a hung engine before this would."""
        if self._dead:
            raise EngineError(self._dead)

    async def run(self, api: str, wire_id: str, payload: bytes) -> None:
        """Run one request to its end; its tokens come through the stream of `api`.

        Raises: EngineError when there is no such stream, or no engine any more.
        """
        owner = self._sessions.get(api)
        if owner is None or self._dead:
            raise EngineError(self._dead or "This replica has no stream to this API process.")
        if owner.was_aborted(wire_id):
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        owner.held[wire_id], self._owner[wire_id] = done, owner
        try:
            self._process.submit(_requests.decode(payload))
            await done
        except EngineError as error:
            owner.put(RequestFailed(wire_id, str(error)))
        finally:
            if owner.held.pop(wire_id, None) is not None:  # cancelled, or could not be submitted
                self._process.abort(wire_id)
            self._owner.pop(wire_id, None)

    async def control(self, session: str, replica: str, payload: bytes) -> None:
        """Aborts, and the sign that the API process lives."""
        owner = self._sessions.get(api_of(session))
        if owner is None or owner.name != session:
            return
        owner.heard()
        for message in to_replica(payload):
            if isinstance(message, Bye):
                self._drop(owner)
                return
            owner.note_abort(message.request_id)
            if message.request_id in owner.held:
                self._process.abort(message.request_id)
                owner.finish(message.request_id)

    async def listen(self, session: str, replica: str, pause: float) -> AsyncIterator[bytes]:
        """The session's messages, from its beginning to its end.

        An item is sent at once, the next one `pause` seconds later at the soonest.
        """
        older = self._sessions.get(api_of(session))
        if older is not None:  # its stream broke: nobody waits for those requests any more
            self._drop(older)
        mine = self._sessions[api_of(session)] = StreamSession(session)
        try:
            yield pack([self._hello()])
            next_beat = 0.0
            loop = asyncio.get_running_loop()
            while not (mine.closed or mine.expired):
                batch = await mine.take(max(0.0, next_beat - loop.time()))
                if loop.time() >= next_beat:
                    next_beat = loop.time() + BEAT
                    held = tuple(mine.held)
                    others = max(0, len(self._owner) - len(held))
                    batch.append(Beat(self._process.stats, held, others))
                yield pack(batch)
                await asyncio.sleep(pause)
        finally:
            self._drop(mine)

    def _hello(self) -> Hello:
        node = ray.get_runtime_context().get_node_id()
        return Hello(
            self._model,
            self._info,
            node,
            platform.node(),
            os.getpid(),
            self._process.pid,
            self._process.stats,
            self._deployed_by,
        )

    def _drop(self, session: StreamSession) -> None:
        if self._sessions.get(api_of(session.name)) is session:
            del self._sessions[api_of(session.name)]
        for wire_id in tuple(session.held):
            self._process.abort(wire_id)
        session.close()

    def _take(self, message: Delta | RequestFailed) -> None:
        owner = self._owner.get(message.request_id)
        if owner is None or message.request_id not in owner.held:
            return  # aborted meanwhile
        owner.put(message)
        if isinstance(message, RequestFailed) or message.delta.finish_reason is not None:
            owner.finish(message.request_id)

    async def _watch_engine(self) -> NoReturn:
        self._dead = await self._process.died()
        print(f"The engine of {self._model} stopped: {self._dead}.", file=sys.stderr, flush=True)
        for session in self._sessions.values():
            session.put(Lost(self._dead, not self._process.killed_from_outside))
        await asyncio.sleep(LAST_WORDS)
        os._exit(1)


def _config_here(spec: ReplicaSpec) -> EngineConfig:
    """The engine's configuration on this node. Raises: MaestraleError that says what is missing."""
    from maestrale.engines.registry import tuned

    check_version(spec)
    config = msgspec.structs.replace(spec.config, model_dir=model_folder(spec))
    config = with_level_here(config)
    if spec.stage_gpus:
        config = msgspec.structs.replace(config, reserved=reserved_here(spec.stage_gpus))
        check_model_on_nodes(spec, config.model_dir)
    if spec.tune:
        config = tuned(config, lambda phase, fraction: None)
    if spec.pin and config.threads is not None:
        _pin(config.threads)
    return config


def _pin(threads: int) -> None:
    """Give this replica, and so its engine, the cores that belong to its rank on this node."""
    rank = serve.get_replica_context().rank
    local = getattr(rank, "local_rank", rank)
    cores = sorted(os.sched_getaffinity(0))
    if not isinstance(local, int) or (local + 1) * threads > len(cores):
        return
    os.sched_setaffinity(0, cores[local * threads : (local + 1) * threads])

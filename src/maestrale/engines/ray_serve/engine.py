"""RayServeEngine: an Engine whose engines are replicas of a Ray Serve deployment.

It keeps the ledger. When a replica is lost, by whatever means, its requests go to another one of
the same fingerprint at once: each gives again the tokens that the client has, which are compared,
and goes on. To whoever reads the tokens that is a short pause. What is above can't tell this
engine from `supervise.SupervisedEngine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from maestrale.engines.base import (
    EngineConfig,
    EngineHealth,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    ReplicaStatus,
    TokenDelta,
)
from maestrale.engines.ray_serve.directory import (
    Directory,
    Seat,
    Wanted,
    directory,
    forget_directory,
)
from maestrale.engines.ray_serve.flights import Flight, Trials
from maestrale.engines.ray_serve.link import ReplicaLink
from maestrale.engines.ray_serve.options import ClusterOptions
from maestrale.engines.ray_serve.runtime import Runtime
from maestrale.engines.ray_serve.status import status_of
from maestrale.errors import (
    ConstraintError,
    EngineError,
    MaestraleError,
    ReplayMismatch,
    Unavailable,
)
from maestrale.supervise.messages import Delta, RequestFailed
from maestrale.supervise.process import sum_stats
from maestrale.supervise.replay import Counters

TICK = 0.5
REJOIN = 1.0  # seconds until a replica whose stream broke is asked again
LOOK = 1.0  # seconds between two looks at what Ray Serve says while no replica is up
PAUSE_OF_EACH = 0.002
"""Seconds between two items of one replica's stream, for each replica: the items of all together
stay few enough for this process, however many replicas there are."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.004, 0.06
_REFUSED = (
    "The engine stopped each time that it ran this request, on several replicas, so the request "
    "is refused. Other requests go on."
)
_encoder = msgspec.msgpack.Encoder()
logger = logging.getLogger(__name__)


class RayServeEngine:
    """The Engine protocol over replicas that come, go and die."""

    def __init__(
        self,
        config: EngineConfig,
        options: ClusterOptions,
        *,
        most_failures: int = 5,
        failure_window: float = 60.0,
    ) -> None:
        """Requests end with an error at `most_failures` deaths of engines within
        `failure_window` seconds, if no replica is left then; and when no replica that can go on
        with them came for so long.
        """
        self._config = config
        self._options = options
        self._most = most_failures
        self._window = failure_window
        self._runtime = Runtime(options)
        self._api = uuid.uuid4().hex[:12]
        self._sessions = 0
        self._runs = 0
        self._handle: Any = None
        self._deployed: float | None = None  # when, if it was this process that did
        self._directory: Directory = directory(options.app)
        self._links: dict[str, ReplicaLink] = {}
        self._closing: set[ReplicaLink] = set()  # drained, or broken; not yet gone
        self._present: frozenset[str] = frozenset()
        self._flights: dict[int, Flight] = {}
        self._wires: dict[str, Flight] = {}
        self._trials = Trials()
        self._infos: dict[str, EngineInfo] = {}  # by fingerprint
        self._info: EngineInfo | None = None
        self._first: asyncio.Event = asyncio.Event()
        self._tender: asyncio.Task[None] | None = None
        self._closer: asyncio.Task[None] | None = None
        self._grace_ends = float("inf")
        self._landed = asyncio.Event()  # a request ended
        self._deaths: deque[tuple[float, str]] = deque()
        self._gave_up = ""
        self._was_up = False
        self._past = EngineStats()
        self._listeners: list[Callable[[bool], None]] = []
        self.counters = Counters()

    # The Engine protocol

    async def start(self) -> None:
        """Start or join Ray, deploy the replicas; ready when the first one is.

        Raises: EngineError with the reason. What was deployed is taken away again.
        """
        loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._runtime.join)
            from maestrale.engines.ray_serve import deployment

            self._directory.routing = self._options.routing
            self._directory.on_replicas = lambda names: _call(loop, self._replicas_are, names)
            self._directory.on_routed = lambda wire, name: _call(loop, self._routed, wire, name)
            if self._options.owner:
                await self._deploy(self._config)
            self._handle = await asyncio.to_thread(deployment.handle, self._options.app)
            self._tender = asyncio.create_task(self._tend())
            await self._until_first()
        except BaseException as error:
            self._gave_up = "The engine could not start; the server's log says why."
            await self._leave()
            if isinstance(error, (MaestraleError, asyncio.CancelledError)):
                raise
            raise EngineError(f"Ray Serve failed: {type(error).__name__}: {error}") from error

    async def close(self, grace: float = 0.0) -> None:
        """No new requests; those in flight have `grace` seconds. Then nothing of ours is left."""
        deadline = asyncio.get_running_loop().time() + grace
        self._grace_ends = min(self._grace_ends, deadline)
        if self._closer is None:
            self._closer = asyncio.create_task(self._close())
        await asyncio.shield(self._closer)

    async def health(self) -> EngineHealth:
        if self._closer is not None:
            return EngineHealth("draining", "The server is stopping.")
        if self._gave_up:
            return EngineHealth("dead", self._gave_up)
        if self._info is None:
            return EngineHealth("starting", "The replicas are loading the model.")
        if not self._usable():
            return EngineHealth(
                "degraded", "All replicas stopped and are restarted; requests wait."
            )
        if self._trials.running:
            return EngineHealth("degraded", "Requests that may stop the engine run one by one.")
        return EngineHealth("ready")

    def describe(self) -> EngineInfo:
        """As each replica is; `max_num_seqs` is what all that are up decode at once."""
        if self._info is None:
            raise EngineError("The engine has not started yet.")
        usable = self._usable()
        return replace(self._info, max_num_seqs=self._info.max_num_seqs * max(1, len(usable)))

    def stats(self) -> EngineStats:
        """Sums over all replicas, and over those that are gone; half a second old."""
        links = [link for link in self._all_links() if link.hello is not None]
        total = self._past
        for link in links:
            total = sum_stats(total, link.stats)
        waiting = sum(1 for flight in self._flights.values() if not flight.replica)
        usages = [link.stats.kv_cache_usage for link in links]
        return replace(
            total,
            running=sum(link.stats.running for link in links),
            waiting=waiting + sum(link.stats.waiting for link in links),
            kv_cache_usage=sum(usages) / len(usages) if usages else 0.0,
            restarts=self.counters.restarts,
            replayed=self.counters.replayed,
            mismatched=self.counters.mismatched,
            refused=self.counters.refused,
            up=bool(self._usable()),
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """Generate tokens for one request, across the deaths of replicas.

        Raises: Unavailable when there is no engine for it, ReplayMismatch when the answer can't be
        completed unchanged, EngineError when this request can't run.
        """
        if self._closer is not None:
            raise Unavailable("The server is stopping.", retry_after=1)
        if self._gave_up:
            raise Unavailable(self._gave_up, retry_after=5)
        if self._info is None:
            raise Unavailable("The replicas are still loading the model.", retry_after=2)
        flight = Flight(request, "")
        self._flights[id(flight)] = flight
        try:
            self._submit(flight)
            while True:
                delta = await flight.entry.mailbox.get()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self._forget(flight)

    async def change(self, config: EngineConfig) -> None:
        """A rolling change: Ray Serve replaces replica after replica by one of `config`.

        Requests in flight end where they began; those after it go to the old replicas while there
        are any, so each answer is of one configuration. Returns once the change has begun.
        Raises: EngineError when Ray Serve can't take it.
        """
        try:
            await self._deploy(config)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"Ray Serve failed: {type(error).__name__}: {error}") from error
        self._config = config

    # What else the API wants to know

    @property
    def paused(self) -> bool:
        """True while no replica is up: streams get comments instead of tokens."""
        return self._info is not None and not self._usable()

    @property
    def engine_pid(self) -> int | None:
        """There is no single one: see `replicas`."""
        return None

    def on_pause(self, listener: Callable[[bool], None]) -> None:
        """Call `listener(True)` when the last replica is lost, `listener(False)` at the next."""
        self._listeners.append(listener)

    def replicas(self) -> list[ReplicaStatus]:
        """Those known to this process, in no order."""
        return [status_of(link) for link in self._all_links()]

    # Replicas come and go (told by the router, on this loop)

    def _replicas_are(self, names: frozenset[str]) -> None:
        self._present = names
        for name, link in tuple(self._links.items()):
            if name not in names:
                link.drain()
                self._directory.unseat(name)
                del self._links[name]
                self._closing.add(link)
                self._leave_if_done(link)
        for name in names:
            if name not in self._links:
                self._open(name)

    def _open(self, name: str) -> None:
        if self._closer is not None or self._handle is None:
            return
        self._sessions += 1
        session = f"{self._api}/{self._sessions}"
        pause = PAUSE_OF_EACH * max(1, len(self._present))
        pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, pause))
        stream = self._handle.options(stream=True).listen.remote(session, name, pause)
        self._links[name] = ReplicaLink(name, session, stream, self._directory, self)

    def link_up(self, link: ReplicaLink) -> None:
        """For the link: its replica has said what it is."""
        assert link.hello is not None
        info = link.hello.info
        if link.hello.model != self._options.model:
            link.state = "foreign"
            logger.warning(
                "The replica on %s serves %s now, not %s: it gets no requests from here.",
                *(link.hello.host, link.hello.model, self._options.model),
            )
            return
        self._infos[info.fingerprint] = info
        if self._info is None or not self._usable_of(self._info.fingerprint, but=link):
            if self._info is not None and self._info.fingerprint != info.fingerprint:
                logger.warning("New requests go to engines of fingerprint %s.", info.fingerprint)
            self._info = info
        elif info.fingerprint != self._info.fingerprint:
            logger.warning(
                "The replica on %s has another fingerprint (%s) than the others (%s): it gets no "
                "requests, as its answers might differ.",
                *(link.hello.host, info.fingerprint, self._info.fingerprint),
            )
        logger.info("A replica is ready on %s (process %d).", link.hello.host, link.hello.pid)
        self._gave_up = ""
        self._first.set()
        seat = Seat(info.fingerprint, info.max_num_seqs, link.stats.running)
        self._directory.seat(link.name, seat)
        if not self._was_up:
            self._was_up = True
            self._tell(False)
        for flight in tuple(self._flights.values()):
            if not flight.wire_id:
                self._submit(flight)

    def link_lost(self, link: ReplicaLink, reason: str, engine_died: bool) -> None:
        """For the link: its requests go elsewhere, now."""
        self._directory.unseat(link.name)
        known = self._links.get(link.name) is link
        if known:
            del self._links[link.name]
        self._closing.discard(link)
        self._past = sum_stats(self._past, link.stats)
        where = link.hello.host if link.hello is not None else "its node"
        lost = [self._wires[wire] for wire in link.wires if wire in self._wires]
        link.wires.clear()
        if link.hello is not None and self._closer is None:
            logger.error(
                "A replica on %s is lost: %s. %d requests in flight go to another one.",
                *(where, reason, len(lost)),
            )
            self.counters.restarts += 1
        if engine_died:
            self._note_death(reason)
        for flight in lost:
            if engine_died:
                flight.strike()
            self._unwire(flight)
        for flight in lost:
            if flight.refused:
                logger.error("A request stops the engine wherever it runs; it is refused.")
                self.counters.refused += 1
                self._end(flight, EngineError(_REFUSED))
            elif not self._gave_up:
                self._submit(flight)
        if self._was_up and not self._usable():
            self._was_up = False
            self._tell(True)
        if self._closer is None:
            asyncio.get_running_loop().call_later(REJOIN, self._rejoin, link.name)

    def _rejoin(self, name: str) -> None:
        if name in self._present and name not in self._links:
            self._open(name)

    def link_held(self, link: ReplicaLink, wire_ids: tuple[str, ...]) -> None:
        """For the link: what its replica works on for us. What nobody waits for is aborted."""
        self._directory.set_load(link.name, max(len(link.wires), link.stats.running))
        for wire_id in wire_ids:
            if wire_id not in self._wires:
                link.abort(wire_id)

    def link_said(self, link: ReplicaLink, message: Delta | RequestFailed) -> None:
        flight = self._wires.get(message.request_id)
        if flight is None:
            return  # aborted meanwhile
        if isinstance(message, RequestFailed):
            kind = ConstraintError if message.constraint else EngineError
            self._end(flight, kind(message.message))
            return
        try:
            new = flight.entry.receive(message.delta)
        except ReplayMismatch as error:
            logger.error("A replayed request gave other tokens than before; it ends in an error.")
            self.counters.mismatched += 1
            self._end(flight, error)
            return
        if new is None:
            return
        flight.entry.mailbox.put(new)
        if flight.entry.strikes:
            flight.cleared()
            self._next_trial(flight)
        if new.finish_reason is not None:
            self._finish(flight)

    # Requests on their way

    def _submit(self, flight: Flight) -> None:
        """Give it to Ray Serve, whose router asks the directory for a replica."""
        assert self._info is not None
        entry = flight.entry
        fingerprint = entry.fingerprint if entry.begun else self._info.fingerprint
        if not self._usable_of(fingerprint) or not self._trials.may_run(flight):
            flight.waiting_since = flight.waiting_since or time.monotonic()
            return
        flight.waiting_since = None
        self._runs += 1
        wire_id = f"{self._api}/{entry.request.request_id}/{self._runs}"
        try:
            request = entry.submission(wire_id, self._infos[fingerprint])
        except ReplayMismatch as error:
            self._end(flight, error)
            return
        self.counters.replayed += flight.runs > 0
        flight.runs += 1
        flight.wire_id = wire_id
        self._wires[wire_id] = flight
        self._directory.wanted[wire_id] = Wanted(request.prompt, fingerprint)
        flight.call = asyncio.create_task(self._run(flight, wire_id, _encoder.encode(request)))

    async def _run(self, flight: Flight, wire_id: str, payload: bytes) -> None:
        """The call lasts as long as the request: so Ray Serve counts it."""
        try:
            await self._handle.run.remote(self._api, wire_id, payload)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # Ray's many, all of which mean that it did not run to its end
            logger.debug("A call of a replica failed: %s", error)
            await asyncio.sleep(0.05)  # the stream's own news, if any, is better
            if self._wires.get(wire_id) is flight:
                self._unwire(flight)
                self._submit(flight)

    def _routed(self, wire_id: str, name: str) -> None:
        flight = self._wires.get(wire_id)
        link = self._links.get(name)
        if link is None:
            link = next((each for each in self._closing if each.name == name), None)
        if flight is None:
            if link is not None:
                link.abort(wire_id)
            return
        if link is None or link.state == "lost":
            self._unwire(flight)
            self._submit(flight)
            return
        flight.replica = name
        link.wires.add(wire_id)

    def _unwire(self, flight: Flight) -> None:
        """It runs nowhere, as far as we care."""
        wire_id, flight.wire_id, flight.replica = flight.wire_id, "", ""
        self._wires.pop(wire_id, None)
        self._directory.wanted.pop(wire_id, None)
        flight.entry.wire_id = None

    def _finish(self, flight: Flight) -> None:
        link = self._link_of(flight)
        wire_id = flight.wire_id
        self._unwire(flight)
        if link is not None:
            link.wires.discard(wire_id)
            self._directory.set_load(link.name, len(link.wires))
            self._leave_if_done(link)

    def _forget(self, flight: Flight) -> None:
        """Its reader is gone, or it ended: no replica works on it any more."""
        self._flights.pop(id(flight), None)
        self._landed.set()
        if flight.wire_id:
            link = self._link_of(flight)
            if link is not None:
                link.abort(flight.wire_id)
            elif flight.call is not None:
                flight.call.cancel()  # it is on its way; if it arrived, `_routed` aborts it
            self._finish(flight)
        self._next_trial(flight)

    def _next_trial(self, flight: Flight) -> None:
        following = self._trials.over(flight)
        if following is not None and not following.wire_id:
            self._submit(following)

    def _end(self, flight: Flight, error: MaestraleError) -> None:
        self._forget(flight)
        flight.entry.mailbox.fail(error)

    def _link_of(self, flight: Flight) -> ReplicaLink | None:
        if not flight.replica:
            return None
        link = self._links.get(flight.replica)
        if link is not None and flight.wire_id in link.wires:
            return link
        return next((each for each in self._closing if flight.wire_id in each.wires), None)

    def _leave_if_done(self, link: ReplicaLink) -> None:
        if link.state == "draining" and not link.wires:
            self._past = sum_stats(self._past, link.stats)
            self._closing.discard(link)
            link.bye()

    # Time passes

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            for link in tuple(self._all_links()):
                link.tick(now - last)
            last = now
            for flight in tuple(self._flights.values()):
                since = flight.waiting_since
                if since is None or flight.suspect:
                    continue
                if flight.entry.begun and time.monotonic() - since > self._window:
                    self._end(flight, ReplayMismatch(self._no_twin(flight)))

    def _no_twin(self, flight: Flight) -> str:
        return (
            "The engine that began this answer stopped, and no replica of the same fingerprint "
            f"({flight.entry.fingerprint}) came within {self._window:.0f} seconds, so nobody can "
            "go on with it. Send the request again."
        )

    async def _until_first(self) -> None:
        """Until a replica is up. Raises: EngineError with the reason when none can start."""
        from maestrale.engines.ray_serve import deployment

        # Any call makes Ray Serve tell this process which replicas there are.
        probe = asyncio.ensure_future(_awaited(self._handle.control.remote("", "*", b"\x90")))
        try:
            said = ""
            while not self._first.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._first.wait(), LOOK)
                    break
                reason, given_up = await asyncio.to_thread(deployment.trouble, self._options.app)
                if given_up:
                    raise EngineError(f"No replica could start: {reason or 'no reason was given.'}")
                if reason and reason != said:
                    said = reason
                    logger.warning("A replica can't start yet: %s", reason)
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    def _note_death(self, reason: str) -> None:
        now = time.monotonic()
        self._deaths.append((now, reason))
        while now - self._deaths[0][0] > self._window:
            self._deaths.popleft()
        if len(self._deaths) >= self._most and not self._usable():
            self._gave_up = (
                f"The engines of all replicas failed, {len(self._deaths)} times within "
                f"{self._window:.0f} seconds (last: {reason}). They are being restarted; try "
                "again later."
            )
            logger.error("%s", self._gave_up)
            for flight in tuple(self._flights.values()):
                self._end(flight, Unavailable(self._gave_up, retry_after=5))

    # The end

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        while self._flights and loop.time() < self._grace_ends:  # which a second close may shorten
            self._landed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._landed.wait(), 0.1)
        for flight in tuple(self._flights.values()):
            self._end(flight, Unavailable("The server is stopping.", retry_after=1))
        await self._leave()

    async def _leave(self) -> None:
        if self._tender is not None:
            self._tender.cancel()
            await asyncio.gather(self._tender, return_exceptions=True)
        self._directory.on_replicas = lambda names: None
        self._directory.on_routed = lambda wire_id, name: None
        links = tuple(self._all_links())
        for link in links:
            link.bye()
        await asyncio.gather(*(link.ended() for link in links))
        self._links.clear()
        self._closing.clear()
        calls = [flight.call for flight in self._flights.values() if flight.call is not None]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.to_thread(self._disconnect)
        forget_directory(self._options.app)

    def _disconnect(self) -> None:
        if self._deployed is not None and self._options.address is not None:
            from maestrale.engines.ray_serve import deployment

            with contextlib.suppress(Exception):  # the cluster may be gone; so is the application
                if deployment.deployed_at(self._options.app) == self._deployed:
                    deployment.remove(self._options.app)  # else it is another server's by now
        self._runtime.leave()

    # Within

    async def _deploy(self, config: EngineConfig) -> None:
        from maestrale.engines.ray_serve import deployment

        await asyncio.to_thread(deployment.deploy, config, self._options)
        self._deployed = await asyncio.to_thread(deployment.deployed_at, self._options.app)

    def _all_links(self) -> list[ReplicaLink]:
        return [*self._links.values(), *self._closing]

    def _usable(self) -> list[ReplicaLink]:
        return self._usable_of(self._info.fingerprint) if self._info is not None else []

    def _usable_of(self, fingerprint: str, but: ReplicaLink | None = None) -> list[ReplicaLink]:
        return [
            link
            for link in self._links.values()
            if link is not but
            and link.state == "up"
            and link.hello is not None
            and link.hello.info.fingerprint == fingerprint
        ]

    def _tell(self, paused: bool) -> None:
        for listener in self._listeners:
            listener(paused)


async def _awaited(response: Any) -> None:
    await response


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody cares any more
        loop.call_soon_threadsafe(function, *args)

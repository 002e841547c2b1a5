"""SupervisedEngine: an Engine whose engine lives in another process, and may die there.

It starts the engine process, watches it, replaces it with growing pauses, and gives the new one
what was in flight (`ledger.py`). To whoever reads the tokens a crash is a pause. When the engine
keeps dying, requests end with a clear error, and it goes on trying in the background.

It can be unloaded, and started again, any number of times.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import zip_longest

from msgspec.structs import replace

from maestrale.engines.base import (
    EngineConfig,
    EngineHealth,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    TokenDelta,
)
from maestrale.errors import ConstraintError, EngineError, Unavailable
from maestrale.supervise.engine_process import EngineProcess
from maestrale.supervise.ledger import Entry, Ledger, LedgerCounters
from maestrale.supervise.messages import Delta, RequestFailed
from maestrale.supervise.watchdog import Patience

CLOSE_SECONDS = 5.0
UNLOADED = (
    "The engine ended before this answer did: the model is unloaded, or another server takes over "
    "and the memory holds one engine only. Send the request again."
)
_TOTALS = (
    *("steps", "prompt_tokens", "generation_tokens", "preemptions"),
    *("prefix_cache_queries", "prefix_cache_hits", "step_tokens_sum"),
    *("draft_tokens", "accepted_tokens"),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """How the engine is replaced. Times in seconds.

    A death is answered at once where requests made progress before it. Where they did not, the
    first within `window` is, and further ones after a pause that doubles from `pause` up to
    `longest_pause`. At `most` deaths of the engine's own doing without progress, requests end with
    an error.
    """

    most: int = 5
    window: float = 60.0
    pause: float = 0.25
    longest_pause: float = 30.0

    def pause_after(self, deaths: int) -> float:
        """The pause before the next start, `deaths` (≥ 0) being those without progress."""
        if deaths <= 1:
            return 0.0
        return float(min(self.longest_pause, self.pause * 2 ** min(deaths - 2, 30)))


class SupervisedEngine:
    """The Engine protocol, kept across the deaths of the process behind it."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        restarts: Restarts | None = None,
        patience: Patience | None = None,
        expected: EngineInfo | None = None,
        label: str = "",
    ) -> None:
        """`expected`: what the engine will be, told by `describe` till it has started. `label`
        names its model in what is said of it, where there are several.
        """
        self._config = config
        self._of = f" of {label}" if label else ""
        self._restarts = restarts or Restarts()
        self._patience = patience or Patience()
        self._ledger = Ledger(self, single=True)
        self._process: EngineProcess | None = None
        self._launching: EngineProcess | None = None
        self._info = expected
        self._unloaded = expected is not None
        self._loading = False
        self._keeper: asyncio.Task[None] | None = None
        self._closer: asyncio.Task[None] | None = None
        self._grace_ends = float("inf")
        self._hurry = asyncio.Event()
        self._deaths: deque[float] = deque()  # times, of those that count against the engine
        self._barren: deque[float] = deque()  # times, of all since there was progress
        self._up = False
        self._gave_up = ""  # why; "" while there is hope
        self._past = EngineStats()  # totals of engines that are gone
        self._listeners: list[Callable[[bool], None]] = []

    # The Engine protocol

    async def start(self) -> None:
        """Start the engine process; ready when this returns.

        Raises: EngineError with the reason, when the first start fails. It is not tried again,
        unless by another call where it is known what the engine will be.
        """
        again, self._unloaded, self._loading = self._unloaded, False, True
        try:
            process = await self._launch(self._made())
        except EngineError:
            self._unloaded = again
            if not again:
                self._gave_up = "The engine could not start; the server's log says why."
            raise
        finally:
            self._loading = False
        self._keeper = asyncio.create_task(self._keep(process))

    async def unload(self) -> None:
        """End the process, and have no other until `start` is called again.

        For a time without requests: those in flight end with an error.
        """
        self._unloaded = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        self._ledger.fail_all(Unavailable(UNLOADED, retry_after=1))
        process, self._process, self._up, self._gave_up = self._process, None, False, ""
        self._deaths.clear()
        self._barren.clear()
        if self._launching is not None:
            await self._launching.kill("the model is being unloaded")
        if process is not None:
            self._past = sum_stats(self._past, process.stats)
            await process.close(CLOSE_SECONDS)

    async def close(self, grace: float = 0.0) -> None:
        """No new requests; those in flight have `grace` seconds, replays included. Then the
        process is gone. Called again meanwhile, the shorter grace counts.
        """
        deadline = asyncio.get_running_loop().time() + grace
        self._grace_ends = min(self._grace_ends, deadline)
        self._hurry.set()
        if self._closer is None:
            self._closer = asyncio.create_task(self._close())
        await asyncio.shield(self._closer)

    async def health(self) -> EngineHealth:
        if self._closer is not None:
            return EngineHealth("draining", "The server is stopping.")
        if self._gave_up:
            return EngineHealth("dead", self._gave_up)
        if self._unloaded:
            return EngineHealth("unloaded", "The model is loaded when a request asks for it.")
        if self._loading and self._info is not None:
            return EngineHealth("loading", "The engine is loading the model; requests wait.")
        if self._info is None:
            return EngineHealth("starting", "The engine is loading the model.")
        if not self._up:
            return EngineHealth("degraded", "The engine stopped and is restarted; requests wait.")
        if self._ledger.trying_suspects:
            return EngineHealth("degraded", "Requests that may stop the engine run one by one.")
        return EngineHealth("ready")

    def describe(self) -> EngineInfo:
        if self._info is None:
            raise EngineError("The engine has not started yet.")
        return self._info

    def stats(self) -> EngineStats:
        """Totals over all engine processes since `start`; at most half a second old.

        Requests that the engine doesn't have (it is being restarted) count as waiting.
        """
        if self._process is None:
            stats = replace(self._past, running=0, waiting=len(self._ledger), kv_cache_usage=0.0)
        else:
            now = self._process.stats
            held = len(self._ledger) - self._ledger.running
            stats = replace(sum_stats(self._past, now), waiting=now.waiting + held)
        counters = self.counters
        return replace(
            stats,
            restarts=counters.restarts,
            replayed=counters.replayed,
            mismatched=counters.mismatched,
            refused=counters.refused,
            up=self._up or self._unloaded or self._loading,
            loaded=not self._unloaded,
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """Generate tokens for one request, across any restarts of the engine.

        Raises: Unavailable when the engine keeps failing or the server stops; ReplayMismatch
        when the answer can't be completed unchanged; EngineError when this request can't run.
        """
        if self._closer is not None:
            raise Unavailable("The server is stopping.", retry_after=1)
        if self._gave_up:
            raise Unavailable(self._gave_up, retry_after=self._retry_after())
        if self._info is None or self._unloaded or self._loading:
            raise Unavailable("The engine is still loading the model.", retry_after=2)
        entry = self._ledger.open(request)
        try:
            async for delta in entry.mailbox:
                yield delta
        finally:
            self._ledger.close(entry)

    # What else the API and the metrics want to know

    @property
    def counters(self) -> LedgerCounters:
        return self._ledger.counters

    @property
    def paused(self) -> bool:
        """True while the engine is being replaced: streams get comments instead of tokens."""
        return self._info is not None and not self._up and not self._unloaded

    @property
    def engine_pid(self) -> int | None:
        """The engine process, while there is one that is ready."""
        return self._process.pid if self._process is not None else None

    def on_pause(self, listener: Callable[[bool], None]) -> None:
        """Call `listener(True)` when the engine is lost, `listener(False)` when it is back."""
        self._listeners.append(listener)

    # Within

    def _made(self) -> EngineProcess:
        return EngineProcess(
            self._config, self._patience, self._take, lambda: self._ledger.running > 0
        )

    async def _launch(self, process: EngineProcess) -> EngineProcess:
        self._launching = process
        try:
            info = await process.start()
        finally:
            self._launching = None
        self._process, self._info = process, info
        base = process.stats  # calibration is no one's request
        self._past = sum_stats(self._past, base, -1)
        self._up = True
        self._gave_up = ""
        logger.info("The engine%s is ready (process %d).", self._of, process.pid)
        self._ledger.submit_waiting()
        self._tell(False)
        return process

    async def _keep(self, process: EngineProcess) -> None:
        """Wait for the engine's death, replace it; again and again."""
        while True:
            reason = await process.died()
            self._lose(process, reason)
            while True:
                await asyncio.sleep(self._restarts.pause_after(self._recent(self._barren)))
                process = self._made()
                try:
                    await self._launch(process)
                    break
                except EngineError as error:
                    logger.error("The engine%s can't start again: %s", self._of, error)
                    self._barren.append(asyncio.get_running_loop().time())
                    if not process.killed_from_outside:
                        self._note_death("the engine could not start again")
            self.counters.restarts += 1

    def _lose(self, process: EngineProcess, reason: str) -> None:
        logger.error(
            "The engine%s stopped: %s. %d requests in flight wait for its successor.",
            *(self._of, reason, len(self._ledger)),
        )
        self._past = sum_stats(self._past, process.stats)
        self._process, self._up = None, False
        self._tell(True)
        refused, moved = self.counters.refused, self._ledger.progress
        counts = self._ledger.lost(blamed=not process.killed_from_outside)
        if moved or self.counters.refused > refused:  # or the culprit is found
            self._barren.clear()
        else:
            self._barren.append(asyncio.get_running_loop().time())
        if self.counters.refused > refused:
            self._deaths.clear()
        elif counts:
            self._note_death(reason)

    def _note_death(self, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        self._deaths.append(now)
        deaths = self._recent(self._deaths)
        if deaths >= self._restarts.most:
            self._gave_up = (
                f"The engine{self._of} failed {deaths} times within "
                f"{self._restarts.window:.0f} seconds (last: {reason}). It is being restarted; try "
                "again later."
            )
            logger.error("%s", self._gave_up)
            self._ledger.fail_all(Unavailable(self._gave_up, retry_after=self._retry_after()))

    def _recent(self, deaths: deque[float]) -> int:
        """How many of them are within the window."""
        now = asyncio.get_running_loop().time()
        while deaths and now - deaths[0] > self._restarts.window:
            deaths.popleft()
        return len(deaths)

    def _retry_after(self) -> int:
        return 1 + round(self._restarts.pause_after(len(self._barren)))

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self._ledger) and loop.time() < self._grace_ends:
            self._hurry.clear()
            left = min(0.05, self._grace_ends - loop.time())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), left)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._ledger.fail_all(Unavailable("The server is stopping.", retry_after=1))
        if self._launching is not None:
            await self._launching.kill("the server is stopping")
        if self._process is not None:
            await self._process.close(CLOSE_SECONDS)
        self._process, self._up = None, False

    # For the ledger

    def engine_for(self, entry: Entry) -> EngineInfo | None:
        """The engine, while there is one that is ready."""
        return self._info if self._process is not None else None

    def submit(self, request: GenerationRequest) -> None:
        """Raises: EngineError when the request is too long to be sent."""
        assert self._process is not None
        self._process.submit(request)

    def abort(self, wire_id: str) -> None:
        """Stop this run of a request."""
        if self._process is not None:
            self._process.abort(wire_id)

    def released(self, wire_id: str) -> None:
        """The engine knows that the run has ended."""

    # Within

    def _take(self, message: Delta | RequestFailed) -> None:
        match message:
            case Delta(wire_id, delta):
                self._ledger.delta(wire_id, delta)
            case RequestFailed(wire_id, reason, constraint):
                error = ConstraintError(reason) if constraint else EngineError(reason)
                self._ledger.failed(wire_id, error)

    def _tell(self, paused: bool) -> None:
        for listener in self._listeners:
            listener(paused)


def sum_stats(past: EngineStats, now: EngineStats, sign: int = 1) -> EngineStats:
    """The totals of `past` and `now` added (`sign` 1) or subtracted (-1), the gauges of `now`."""
    totals = {name: getattr(past, name) + sign * getattr(now, name) for name in _TOTALS}
    both = zip_longest(past.step_tokens, now.step_tokens, fillvalue=0)
    return replace(now, **totals, step_tokens=tuple(a + sign * b for a, b in both))

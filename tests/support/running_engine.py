"""An engine on an event loop of its own, so that plain tests can share it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from maestrale.engines.base import (
    Engine,
    EngineConfig,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    TokenDelta,
    TokenLogprob,
)
from maestrale.engines.registry import build_engine

START_SECONDS = 600.0  # torch alone takes a minute to import on a busy machine
T = TypeVar("T")


@dataclass
class Answer:
    """All deltas of one request."""

    request: GenerationRequest
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    embedding: bytes | None = None


class RunningEngine:
    """Start one, run requests on it from plain code, stop it."""

    def __init__(
        self,
        config: EngineConfig,
        build: Callable[[EngineConfig], Engine] = build_engine,
        lag: float = 0.0,
    ) -> None:
        """`lag`: for how many seconds its stats may be behind."""
        self.config = config
        self.lag = lag
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.engine: Engine = build(config)
        try:
            self.do(self.engine.start(), START_SECONDS)
        except BaseException:
            self.stop()
            raise
        self.info: EngineInfo = self.engine.describe()

    def do(self, work: Coroutine[Any, Any, T], timeout: float = 280) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def run(self, *requests: GenerationRequest) -> list[Answer]:
        """All the requests at once."""

        async def together() -> list[Answer]:
            return list(await asyncio.gather(*(collect(self.engine, one) for one in requests)))

        return self.do(together())

    def settled(self) -> EngineStats:
        """The stats once nothing runs any more."""

        async def settle() -> EngineStats:
            await asyncio.sleep(self.lag)
            for _ in range(500):
                stats = self.engine.stats()
                if not stats.running and not stats.waiting:
                    return stats
                await asyncio.sleep(0.01)
            return self.engine.stats()

        return self.do(settle())

    def stop(self, grace: float = 0.0) -> None:
        self.do(self.engine.close(grace))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def collect(
    engine: Engine,
    request: GenerationRequest,
    on_delta: Callable[[TokenDelta], Awaitable[None]] | None = None,
) -> Answer:
    answer = Answer(request)
    async with aclosing(engine.generate(request)) as deltas:  # type: ignore[type-var]
        async for delta in deltas:
            if not answer.tokens:
                answer.cached_tokens = delta.cached_tokens
                answer.prompt_logprobs = delta.prompt_logprobs
            if delta.embedding is not None:
                answer.embedding = delta.embedding
            answer.tokens += delta.token_ids
            answer.logprobs += delta.logprobs or ()
            answer.finish_reason = delta.finish_reason
            if on_delta is not None:
                await on_delta(delta)
    return answer

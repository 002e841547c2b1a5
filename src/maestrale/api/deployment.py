"""A deployment: one served model with all that belongs to it. A server has one or several.

The routes find theirs by the name in a request (`Deployments.resolve`) and stand on nothing else of
a model. What loads a deployment, and owns its engine, is in serve/.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from msgspec import structs

from maestrale.api.admission import RETRY_AFTER, Admission
from maestrale.api.operations.history import Event, FaultLog, History, Sample, read
from maestrale.chat.answer import Answer
from maestrale.chat.service import ChatService
from maestrale.config.settings import Settings
from maestrale.engines.base import Engine, EngineHealth, Task
from maestrale.errors import (
    Location,
    ModelError,
    ModelNotFound,
    SettingsError,
    Unavailable,
    quoted,
)
from maestrale.logs import LOGGER
from maestrale.metrics import Metrics, ModelMetrics
from maestrale.models.sampling_defaults import NEUTRAL, SamplingDefaults
from maestrale.printable import without_folders

# degraded: the engine restarts, requests wait for it, as they do for one that is to be loaded
READY_STATES = ("ready", "degraded", "loading", "unloaded")
WAITING_STATES = ("degraded", "loading", "unloaded")
# Of several deployments the best state is the server's.
STATES = (*READY_STATES, "starting", "draining", "dead")
HELD_STATES = ("ready", "degraded", "loading")
TEND_SECONDS = 1.0
LINGER = 5.0  # seconds for which what text needs is kept after the last request


def names_of(settings: Settings, model_name: str) -> tuple[str, ...]:
    """What a model with these settings is called; `model_name`: by itself."""
    return settings.served_model_name or (model_name,)


def deployment_id(settings: Settings) -> str:
    """The id of the deployment that has these settings."""
    return names_of(settings, settings.model)[0]


class MakesServices(Protocol):
    """Makes the service of one deployment again, after it was let go."""

    async def make(self) -> ChatService:
        """Raises: ModelError."""

    async def freed(self) -> None:
        """The service was let go: return its memory."""


class Deployment:
    """One model: `open` puts its engine, and the service that answers on it, behind its names."""

    def __init__(
        self, settings: Settings, admission: Admission, metrics: Metrics, events: FaultLog
    ) -> None:
        """`settings`: the server's, with what this model has of its own."""
        self.settings = settings
        self.id = deployment_id(settings)
        """What the server's processes call it among themselves, before its names are known, too."""
        self.names: tuple[str, ...] = ()
        self.created = int(time.time())
        self.last_used = 0.0  # Unix time; 0: never
        self.sampling = NEUTRAL
        self.phase = "The server is starting."
        """How far loading is, as one sentence."""
        self.loading = False
        """Whether it is being loaded now, for requests that wait."""
        self.failure = ""
        """Why it can't be loaded, or could not when that was last tried; without the folders of
        files, as every key may read it.
        """
        self.pinned = False
        self.memory: int | None = None
        """Bytes that it takes while it is loaded, where that is known."""
        self.retry_at = 0.0
        """Until when, on the monotonic clock, nobody tries to load it after it failed."""
        self.admission = admission
        self.engine: Engine | None = None
        self.metrics: ModelMetrics | None = None
        self.history = History(self._sample, self._restarted)
        self._registry = metrics
        self._events = events
        self.tool_call_format: str | None = None
        """How the model writes tool calls, once that is known."""
        self.fills_gaps = False
        """Whether it has marks for filling in the middle."""
        self._service: ChatService | None = None
        self._services: MakesServices | None = None
        self._making: asyncio.Task[ChatService] | None = None
        self._draining = False

    def open(
        self,
        engine: Engine,
        model_name: str,
        sampling: SamplingDefaults = NEUTRAL,
        service: ChatService | None = None,
        services: MakesServices | None = None,
    ) -> None:
        """Its engine has started. Where another process answers, there is no service.

        `sampling`: what the model's makers advise, for requests that leave it open. `services`:
        what makes the service again, which is then let go while the model isn't loaded.
        """
        if self.settings.generation_config == "auto":
            self.sampling = sampling
        self.sampling = structs.replace(self.sampling, **self.settings.sampling_overrides)
        self.names = names_of(self.settings, model_name)
        self.engine, self._service, self._services = engine, service, services
        if service is not None:
            form = service.encoder.tool_format
            self.tool_call_format = None if form is None else form.name
            self.fills_gaps = service.encoder.fim_marks is not None
        self.metrics = self._watch(engine)
        self.history.take()  # what comes from now on is news, also within the first second

    def knows(self, name: str) -> bool:
        """Whether requests for `name` are its own, also while it is loaded."""
        return name in (self.names or names_of(self.settings, self.settings.model))

    @property
    def name(self) -> str:
        """What it is called where one name is enough."""
        return (self.names or (self.id,))[0]

    @property
    def listed(self) -> tuple[str, ...]:
        """Its names as every key may read them, also before its own name is known."""
        return self.names or names_of(self.settings, without_folders(self.settings.model))

    @property
    def max_num_seqs(self) -> int:
        """Sequences that its engine decodes at once; that may grow and shrink."""
        return self.engine.describe().max_num_seqs if self.engine is not None else 1

    @property
    def task(self) -> Task:
        """What it is served for, once it is loaded."""
        return self.engine.describe().task if self.engine is not None else "generate"

    def touch(self) -> None:
        """A request for it came."""
        self.last_used = time.time()

    def fail(self, reason: str, seconds: float = math.inf) -> None:
        """It can't be loaded, and is not tried again for so many seconds."""
        self.failure = without_folders(reason, *self._places)
        self.retry_at = time.monotonic() + seconds

    @property
    def _places(self) -> list[str]:
        """Paths of which every key may read the last part only."""
        model = self.settings.model
        places = [os.path.abspath(os.path.expanduser(model)), str(self.settings.cache_dir)]
        return [*places, model] if os.path.isabs(model) else places

    def forgive(self) -> None:
        """It was loaded, or is to be tried again at once."""
        self.failure, self.retry_at = "", 0.0

    @property
    def retry_after(self) -> int:
        """Seconds that a client shall wait which can't be answered now."""
        left = self.retry_at - time.monotonic()
        return RETRY_AFTER if not 0 < left < math.inf else max(RETRY_AFTER, math.ceil(left))

    def drain(self) -> None:
        """From now on new requests get 503; those in flight go on."""
        self._draining = True

    async def health(self) -> EngineHealth:
        """Its state, as /health reports it."""
        if self._draining:
            return EngineHealth("draining", "The server is shutting down.")
        if self.failure and time.monotonic() < self.retry_at:
            return EngineHealth("dead", self.failure)
        if self.engine is None:
            return EngineHealth("starting", self.phase)
        if self.loading:
            return EngineHealth("loading", self.phase)
        health = await self.engine.health()
        if health.state == "unloaded" and self.failure:
            return EngineHealth(health.state, f"It could not be loaded last time: {self.failure}")
        return health

    async def paused(self) -> bool:
        """Whether answers in flight wait for an engine that is being replaced or loaded."""
        return self.engine is not None and (await self.engine.health()).state in WAITING_STATES

    async def to_be_loaded(self) -> bool:
        """Whether requests wait until the model is in memory."""
        return (await self.health()).state in ("loading", "unloaded")

    async def service(self) -> ChatService:
        """The chat service. Raises: Unavailable while starting, draining or dead."""
        health = await self.health()
        if not self._opened or health.state not in READY_STATES:
            raise unavailable(health, self.retry_after)
        self.touch()
        return self._service or await self._made_again()

    @property
    def _opened(self) -> bool:
        return self._service is not None or self._services is not None

    async def tend(self) -> None:
        """Let go of what text needs once the model is unloaded and nobody asked for it for a
        moment; have it again when the model is loaded.
        """
        if self._services is None:
            return
        state = (await self.health()).state
        if self._service is None and state in HELD_STATES:
            with contextlib.suppress(Unavailable):
                await self._made_again()
        elif self._service is not None and state == "unloaded":
            unused = time.time() - self.last_used >= LINGER
            if unused and self._making is None and not self.admission.requests:
                self._service = None
                await self._services.freed()

    async def _made_again(self) -> ChatService:
        """The service, made once for all who ask. Raises: Unavailable."""
        if self._making is None:
            assert self._services is not None
            self._making = asyncio.create_task(self._services.make())
            self._making.add_done_callback(self._remade)
        try:
            return await asyncio.shield(self._making)
        except ModelError as error:
            LOGGER.error("%s can't answer: %s", self.name, error)
            reason = without_folders(str(error), *self._places)
            raise Unavailable(reason, code="model_not_loaded", retry_after=RETRY_AFTER) from error

    def _remade(self, making: asyncio.Task[ChatService]) -> None:
        self._making = None
        if not making.cancelled() and making.exception() is None:
            self._service = making.result()

    def observe_gap(self, seconds: float) -> None:
        """Count the time between two deltas of one choice."""
        if self.metrics is not None:
            self.metrics.gap.observe(seconds)

    def begin(self, answer: Answer) -> None:
        """Count this answer's tokens from now on."""
        if self.metrics is not None:
            self.metrics.begin(answer)

    def observe(self, answer: Answer) -> None:
        """Count an answer that ended, well or not."""
        if self.metrics is not None:
            self.metrics.end(answer)

    def spell_prompts(self, answer: Answer) -> str:
        """The prompts of an answer as text, for the log that was asked to show them."""
        if self._service is None:
            return ""
        prompts = dict.fromkeys(request.prompt for request in answer.requests)
        return " | ".join(self._service.encoder.decode(prompt) for prompt in prompts)

    def _watch(self, engine: Engine) -> ModelMetrics:
        return self._registry.watch(engine, self.names[0], lambda: self.admission.waiting)

    def _sample(self) -> Sample | None:
        if self.engine is None:
            return None
        return read(self.engine, self.admission.waiting, self.names[0], self._registry)

    def _restarted(self, moment: float) -> None:
        self._events.add(Event("restart", "engine_restarted", moment, model=self.names[0]))


class Deployments:
    """Those of one server, in order; the first answers where a request names none."""

    def __init__(self, deployments: Sequence[Deployment]) -> None:
        """Raises: SettingsError for two of one name."""
        self._all = tuple(deployments)
        self._by_id = {each.id: each for each in self._all}
        seen: set[str] = set()
        for each in self._all:
            for name in names_of(each.settings, each.settings.model):
                if name in seen:
                    raise _same_name(name)
                seen.add(name)

    def __iter__(self) -> Iterator[Deployment]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, id_: str) -> Deployment:
        """The one with this `id`. Raises: KeyError."""
        return self._by_id[id_]

    @property
    def default(self) -> Deployment:
        return self._all[0]

    @property
    def names(self) -> tuple[str, ...]:
        """All names of those that are loaded."""
        return tuple(name for each in self._all for name in each.names)

    def check_name(self, deployment: Deployment, model_name: str) -> None:
        """Whether it may be called so, by its own name. Raises: SettingsError."""
        for name in names_of(deployment.settings, model_name):
            if any(name in each.names for each in self._all if each is not deployment):
                raise _same_name(name)

    def resolve(self, name: str | None) -> Deployment:
        """The deployment of this name; None: the default one.

        One that is still loaded may turn out to have it: its `service` says to come again.
        Raises: ModelNotFound.
        """
        if name is None:
            return self.default
        known = [each for each in self._all if each.knows(name)]
        known = known or [each for each in self._all if name in each.listed]
        loading = [each for each in self._all if not each.names and not each.failure]
        if known or loading:
            return (known or loading)[0]
        raise ModelNotFound(
            f"There is no model {quoted(name)!r}; this server has {', '.join(self.names)}.",
            at=Location("model"),
        )

    async def tend(self) -> None:
        """Hold in memory what text needs of those that are loaded, until cancelled."""
        while True:
            for each in self._all:
                try:
                    await each.tend()
                except Exception:
                    LOGGER.exception("%s is not looked after", each.name)
            await asyncio.sleep(TEND_SECONDS)

    async def health(self) -> EngineHealth:
        """The best state of all: while one of them answers, the server does."""
        found = [await each.health() for each in self._all]
        return min(found, key=lambda each: STATES.index(each.state))


def unavailable(health: EngineHealth, retry_after: int = RETRY_AFTER) -> Unavailable:
    """The error that tells of this state."""
    detail = health.detail or f"The engine is {health.state}."
    return Unavailable(detail, code=health.state, retry_after=retry_after)


def _same_name(name: str) -> SettingsError:
    return SettingsError(
        f"Two models are called {name!r}. Give one of them another name (--served-model-name)."
    )

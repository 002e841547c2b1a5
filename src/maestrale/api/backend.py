"""What the routes stand on: the model's chat service once it is there, and the state till then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from maestrale.api.admission import RETRY_AFTER, Admission
from maestrale.api.http.body import BodyReader
from maestrale.api.operations.history import Events, History
from maestrale.api.operations.node_status import ApiNodeStatus
from maestrale.api.rate import RateLimiter
from maestrale.chat.answer import Answer
from maestrale.chat.service import ChatService
from maestrale.config.settings import Settings
from maestrale.engines.base import Engine, EngineHealth
from maestrale.errors import Location, ModelNotFound, Unavailable, quoted
from maestrale.keys import KeyStore
from maestrale.metrics import Metrics
from maestrale.models.sampling_defaults import NEUTRAL, SamplingDefaults

if TYPE_CHECKING:
    from maestrale.api.operations.tracing import Tracer

READY_STATES = ("ready", "degraded")  # degraded: the engine restarts, requests wait for it


class Backend:
    """Shared by all routes of one server. `attach` gives it the model; `drain` ends its work."""

    def __init__(self, settings: Settings, keys: KeyStore | None = None) -> None:
        """`keys` are those accepted; by default the settings' own.

        Raises: SettingsError for a broken key file, or traces without the extra for them.
        """
        self.settings = settings
        self.keys = keys if keys is not None else KeyStore(settings.api_key, settings.key_file)
        self.rates = RateLimiter()
        self.bodies = BodyReader(settings.max_body_bytes)
        self.admission = Admission(settings.max_waiting, lambda: self.keys.several)
        self.metrics = Metrics()
        self.events = Events()
        self.history = History(self)
        self.tracer: Tracer | None = None
        if settings.traces_url is not None:
            from maestrale.api.operations.tracing import Tracer

            self.tracer = Tracer(settings.traces_url)
        self.created = int(time.time())
        self.names: tuple[str, ...] = ()
        self.sampling = NEUTRAL
        self.starting = "The server is starting."
        self.elsewhere: Callable[[], list[ApiNodeStatus]] = list
        self.metrics.watch_nodes(lambda: [each.state for each in self.elsewhere()])
        self._service: ChatService | None = None
        self._draining = False

    def attach(
        self, service: ChatService, model_name: str, sampling: SamplingDefaults = NEUTRAL
    ) -> None:
        """From now on requests are answered by `service`; its engine has started.

        `sampling`: what the model's makers advise, for requests that leave it open.
        """
        if self.settings.generation_config == "auto":
            self.sampling = sampling
        self.names = self.settings.served_model_name or (model_name,)
        self._service = service
        self.metrics.watch(service.engine, self.names[0], lambda: self.admission.waiting)
        self.history.take()  # what comes from now on is news, also within the first second

    async def check_room(self, key: str, sequences: int, max_num_seqs: int) -> None:
        """Whether a request would be refused now, told before a prompt is made in vain.

        Raises: Unavailable.
        """
        self.admission.check(key, sequences, max_num_seqs)

    async def ask_all(self, about: Literal["metrics", "status", "load"]) -> bytes | None:
        """The answer of all API processes together; None: there is this one only."""
        return None

    def processes(self) -> list[dict[str, Any]]:
        """The API processes, for the status page."""
        return [{"pid": os.getpid(), "state": "ready", "requests": self.admission.requests}]

    @property
    def engine(self) -> Engine | None:
        """The engine, once it has started."""
        return self._service.engine if self._service is not None else None

    def drain(self) -> None:
        """From now on new requests get 503; those in flight go on."""
        self._draining = True

    async def health(self) -> EngineHealth:
        """The state that /health reports."""
        if self._draining:
            return EngineHealth("draining", "The server is shutting down.")
        if self._service is None:
            return EngineHealth("starting", self.starting)
        return await self._service.engine.health()

    async def paused(self) -> bool:
        """Whether answers in flight wait for an engine that is being replaced."""
        if self._service is None:
            return False
        return (await self._service.engine.health()).state == "degraded"

    async def service(self) -> ChatService:
        """The chat service. Raises: Unavailable while starting, draining or dead."""
        health = await self.health()
        if self._service is None or health.state not in READY_STATES:
            raise Unavailable(
                health.detail or f"The engine is {health.state}.",
                code=health.state,
                retry_after=RETRY_AFTER,
            )
        return self._service

    def spell_prompts(self, answer: Answer) -> str:
        """The prompts of an answer as text, for the log that was asked to show them."""
        if self._service is None:
            return ""
        prompts = dict.fromkeys(request.prompt for request in answer.requests)
        return " | ".join(self._service.encoder.decode(prompt) for prompt in prompts)

    def check_model(self, name: str | None) -> str:
        """The served model's name, if `name` is one of its names (None: whichever is served).

        Raises: ModelNotFound.
        """
        if name is not None and name not in self.names:
            known = ", ".join(self.names)
            raise ModelNotFound(
                f"There is no model {quoted(name)!r}; this server has {known}.",
                at=Location("model"),
            )
        return self.names[0]

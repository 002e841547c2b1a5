"""What the routes stand on: the deployments, and what all of them share."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from maestrale.api.accounts import Accounts, KeyAccounts, usage_file
from maestrale.api.admission import Admission
from maestrale.api.auth import check_model, may_ask
from maestrale.api.context import RequestContext, usage_of
from maestrale.api.deployment import READY_STATES, Deployment, Deployments, unavailable
from maestrale.api.durable.streams import Streams
from maestrale.api.http.body import BodyReader
from maestrale.api.operations.history import STEP, FaultLog
from maestrale.api.operations.node_status import ApiNodeStatus
from maestrale.config.settings import Settings
from maestrale.durable.database import SWEEP_SECONDS
from maestrale.engines.base import EngineHealth
from maestrale.errors import Conflict
from maestrale.keys import KeyStore
from maestrale.logs import LOGGER
from maestrale.metrics import Metrics

if TYPE_CHECKING:
    from maestrale.api.operations.tracing import Tracer

About = Literal["metrics", "status", "load"]
Steering = Literal["load", "unload"]


class Backend:
    """Shared by all routes of one server. Its deployments are opened as they are loaded; `drain`
    ends its work.
    """

    def __init__(
        self,
        settings: Settings,
        models: Sequence[Settings] = (),
        *,
        keys: KeyStore | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`models`: the settings of each, by default those of the server. `keys` are those
        accepted; by default the settings' own.

        Raises: SettingsError for a broken key file, traces without the extra for them, or two
        models of one name.
        """
        self.settings = settings
        self.keys = keys if keys is not None else KeyStore(settings.api_key, settings.key_file)
        self.bodies = BodyReader(settings.max_body_bytes)
        self.streams = Streams(settings)
        self.metrics = metrics if metrics is not None else Metrics()
        self.accounts = self._make_accounts()
        self.events = self._make_events()
        self.tracer: Tracer | None = None
        if settings.traces_url is not None:
            from maestrale.api.operations.tracing import Tracer

            self.tracer = Tracer(settings.traces_url)
        self.started = time.monotonic()
        self.steering: Callable[[str, Steering], None] | None = None
        """Begins to load or unload a deployment, by its id; None: all stay loaded."""
        self.node_status: Callable[[], list[ApiNodeStatus]] = list
        self.metrics.watch_nodes(lambda: [each.state for each in self.node_status()])
        self.deployments = Deployments([self._deploy(each) for each in models or (settings,)])

    def _make_accounts(self) -> Accounts:
        observe = self.metrics.watch_usage() if self.settings.metrics_by_key else lambda row: None
        return Accounts(KeyAccounts(usage_file(self.settings), observe=observe))

    def find(self, context: RequestContext, name: str | None) -> Deployment:
        """The deployment that a request asks for; None: the first that its key may ask.

        Raises: ModelNotFound, PermissionDenied.
        """
        owner = context.owner
        if name is None:
            found = next((each for each in self.deployments if may_ask(owner, each)), None)
            deployment = found or self.deployments.default
        else:
            deployment = self.deployments.resolve(name)
        context.deployment = deployment
        check_model(owner, deployment)
        return deployment

    async def settle(self, context: RequestContext) -> None:
        """Count a request that ends, once, and wait until that is written: before its client
        learns of its end.
        """
        if not context.settled:
            context.settled = True
            if context.run is not None:
                context.counted = await context.run.charge()
            await self.accounts.settle(context.owner, context.charge, usage_of(context))

    def _make_events(self) -> FaultLog:
        return FaultLog()

    def _deploy(self, settings: Settings) -> Deployment:
        admission = Admission(settings.max_waiting, lambda: self.keys.several)
        return Deployment(settings, admission, self.metrics, self.events)

    @property
    def requests(self) -> int:
        """Requests in flight or waiting, of all models."""
        return sum(each.admission.requests for each in self.deployments)

    async def idle(self) -> None:
        """Wait until there are none; new ones must be refused meanwhile (`drain`)."""
        for each in self.deployments:
            await each.admission.idle.wait()

    async def ask_all(self, about: About, model: str = "") -> bytes | None:
        """The answer of all API processes together; None: there is this one only.

        `model`: the id of the deployment that it is about.
        """
        return None

    async def steer(self, model: str, steering: Steering) -> None:
        """Begin to load or unload the deployment with this id.

        Raises: Conflict where that can't be.
        """
        if self.steering is None:
            raise Conflict(
                "The one model of this server stays loaded. Several are loaded and unloaded, and "
                "so is one with --keep-alive."
            )
        self.steering(model, steering)
        await asyncio.sleep(0)  # it begins, and its state tells so

    def processes(self) -> list[dict[str, Any]]:
        """The API processes, for the status page."""
        return [{"pid": os.getpid(), "state": "ready", "requests": self.requests}]

    def drain(self) -> None:
        """From now on new requests get 503; those in flight go on."""
        for each in self.deployments:
            each.drain()

    async def health(self) -> EngineHealth:
        """The state that /health reports."""
        return await self.deployments.health()

    async def check_ready(self) -> None:
        """Raises: Unavailable where no model can answer, before any of a body is read."""
        health = await self.health()
        if health.state not in READY_STATES:
            raise unavailable(health)

    async def keep_history(self) -> None:
        """Take samples for the status page until cancelled."""
        while True:
            for each in self.deployments:
                try:
                    each.history.take()
                except Exception:
                    LOGGER.exception("The status page got no sample")
            await asyncio.sleep(STEP)

    async def tend(self) -> None:
        """Let go of what was kept or held for long enough, until cancelled."""

        async def tidy() -> None:
            while True:
                await self.streams.tidy()
                await asyncio.sleep(SWEEP_SECONDS)

        await asyncio.gather(self.deployments.tend(), tidy())

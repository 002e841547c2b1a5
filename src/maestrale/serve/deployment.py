"""What owns a deployment: its model prepared and checked, its engine and vetting processes.

Be the HTTP in the same process (`in_process.py`) or in several others (`workers/parent.py`).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from maestrale.api.deployment import Deployment
from maestrale.chat.options import ANY_OBJECT
from maestrale.config.settings import engines_of, flag
from maestrale.engines.base import Engine, EngineConfig, EngineInfo, Forecast, Unloadable
from maestrale.errors import MaestraleError, ModelError, SettingsError
from maestrale.logs import LOGGER
from maestrale.models.prepared import PreparedModel, weights_stamp
from maestrale.serve import hosting
from maestrale.serve.hosting import in_thread
from maestrale.serve.progress import StartProgress
from maestrale.supervise.process import Restarts, SupervisedEngine
from maestrale.supervise.vetting import ConstraintVetter, VettingLimits

ANY_MEMORY = 1 << 60  # bytes: what another node has is not known here
WARM_AFTER = 1.0  # seconds for which the first requests have the processor to themselves


class DeploymentHost:
    """One deployment's processes: `prepare`, `start`, `vet`, and `close` in any state."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.settings = deployment.settings
        """The deployment's; once it is prepared, with the engine that was chosen."""
        self.engine: Engine | None = None
        self.vetter: ConstraintVetter | None = None
        self.label = ""
        """What the log calls its engine by, where there are several."""
        self.alone: Callable[[], Awaitable[None]] | None = None
        """Has another server's engines end, for one that takes what memory there is."""
        self.variant = ""
        """Tells its replicas from those of another deployment of the same model."""
        self._warming: asyncio.Task[None] | None = None
        self._expected = False  # the engine is known, and started when it is asked for
        self._seen = ""  # of the weights, as they were when the model was prepared
        self._look: Callable[[], str] = str

    @property
    def stays(self) -> bool:
        """Whether it is loaded from the start to the end: some of its replicas always run."""
        return (self.settings.replica_range or (0, 0))[0] > 0

    @property
    def from_zero(self) -> bool:
        """Whether it has replicas only while requests ask for them."""
        return self.settings.replica_range is not None and not self.stays

    def tell(self, phase: str) -> None:
        """How far it is, for /health."""
        self.deployment.phase = phase

    async def prepare(self, progress: StartProgress) -> tuple[Path, PreparedModel, EngineConfig]:
        """The model's prepared folder, what is known of it, and what its engine shall be.

        Raises: ModelError, SettingsError.
        """
        from maestrale.engines.choose import choose_engine
        from maestrale.engines.registry import FORECASTS, tuned
        from maestrale.models.prepared import load_prepared
        from maestrale.models.resolve import prepare

        if self.settings.replica_range is not None:
            from maestrale.cluster.runtime import require_ray

            require_ray()
        choice = choose_engine(self.settings.engine, self.settings.model)
        if self.settings.engine == "auto":
            LOGGER.info("%s", choice.line)
        for name in self.settings.engine_options:
            if choice.name not in engines_of(name):
                raise SettingsError(
                    f"{flag(name)} is for --engine {' or '.join(engines_of(name))}, and here the "
                    f"engine is {choice.name} ({choice.why}): leave it out, or of several models "
                    "give it, and the engine, to those in whose tables [[model]] it belongs."
                )
        settings = self.settings = dataclasses.replace(self.settings, engine=choice.name)
        folder = await in_thread(
            lambda: prepare(
                settings.model,
                settings.cache_dir,
                progress.update,
                engine=choice.name,
                revision=settings.revision,
            )
        )
        prepared = load_prepared(folder)
        self._look = partial(weights_stamp, prepared, folder)
        self._seen = await in_thread(self._look)
        if self.alone is not None and choice.name not in FORECASTS:
            await self.alone()
        await in_thread(lambda: self._check_fit(folder, prepared, choice.name))
        config = hosting.engine_config(settings, str(folder))
        if settings.ray_address is None:  # on a cluster each node is asked what suits it
            config = await in_thread(lambda: tuned(config, progress.update))
        return folder, prepared, config

    async def start(self, config: EngineConfig) -> Engine:
        """Start the engine. Raises: EngineError with the reason."""
        engine = self.engine = self._build(config)
        await engine.start()
        return engine

    def forecast(self, config: EngineConfig, memory: int) -> Forecast | None:
        """What its engine will be with up to `memory` bytes; None where only starting it tells.

        Raises: ModelError, EngineError where it doesn't fit.
        """
        from maestrale.engines.registry import forecast

        if self.stays:
            return None
        if self.settings.replica_range is None:
            return forecast(config, memory)
        # Each replica fits itself to its node, and takes nothing of this server's budget.
        here = self.settings.ray_address is None
        foreseen = forecast(config, memory if here else ANY_MEMORY)
        return foreseen and replace(foreseen, config=config, memory=0)

    def taken(self) -> int:
        """Bytes of this machine's memory that its processes hold now; of replicas none counts."""
        from maestrale.models.machine_limits import held_memory

        pid = self.engine.engine_pid if isinstance(self.engine, SupervisedEngine) else None
        return held_memory(pid) if pid is not None else 0

    def expect(self, forecast: Forecast) -> Engine:
        """Its engine as it will be; `load` starts it."""
        self._expected = True
        self.engine = self._build(forecast.config, forecast.info)
        return self.engine

    async def load(self) -> None:
        """Start the engine that is expected. Raises: EngineError, ModelError with the reason."""
        assert self.engine is not None
        name = self.deployment.name
        self.tell(f"Loading {name}")
        if await in_thread(self._look) != self._seen:
            raise ModelError(
                f"The files of {name} were changed since the server prepared them. "
                "Start the server anew, so that tokenizer and weights belong together."
            )
        with StartProgress(self.tell) as progress:
            progress.update(f"Loading {name}", None)
            await self.engine.start()
        self._warm()

    async def unload(self) -> None:
        """End the engine's process, and those beside it; `load` starts others."""
        assert isinstance(self.engine, Unloadable)
        if self._warming is not None:
            self._warming.cancel()
        await self.engine.unload()
        if self.vetter is not None:
            await self.vetter.release()

    def vet(self, folder: Path, prepared: PreparedModel) -> ConstraintVetter:
        """Make the vetter, and say what else of the engine the operator should know."""
        from maestrale.models.fit_cpu import shortened

        limits = VettingLimits(time=self.settings.grammar_timeout)
        self.vetter = ConstraintVetter(str(folder), limits)
        if self.engine is not None and self.settings.max_model_len is None:
            note = shortened(prepared, self.engine.describe().max_model_len)
            if note:
                LOGGER.warning("%s", note)
        if not self._expected:
            self._warm()
        return self.vetter

    def _warm(self) -> None:
        """The first schema would otherwise wait for a process that compiles schemas."""
        if self.vetter is not None:
            self._warming = asyncio.create_task(_warm(self.vetter))

    async def fail(self, error: MaestraleError) -> None:
        """It can't be loaded: keep the reason, and nothing running."""
        self.deployment.fail(str(error))
        await self.close()
        self.engine = self.vetter = None
        self.settings, self._expected = self.deployment.settings, False

    async def close(self) -> None:
        """Leave nothing running, however far it came."""
        if self.engine is not None:
            await self.engine.close(0)
        if self._warming is not None:
            self._warming.cancel()
        if self.vetter is not None:
            await self.vetter.close()

    def _build(self, config: EngineConfig, expected: EngineInfo | None = None) -> Engine:
        settings = self.settings
        most, window = settings.max_engine_failures, settings.failure_window
        if settings.replica_range is None:
            restarts = Restarts(most=most, window=window)
            return SupervisedEngine(config, restarts=restarts, expected=expected, label=self.label)
        from maestrale.cluster.engine import RayServeEngine

        return RayServeEngine(
            config,
            hosting.cluster_options(settings, config, self.variant),
            most_failures=most,
            failure_window=window,
            expected=expected,
            label=self.label,
        )

    def _check_fit(self, folder: Path, prepared: PreparedModel, engine: str) -> None:
        """Raises: ModelDoesNotFit before anything is loaded, rather than minutes later."""
        from maestrale.models.fit_cpu import check_gpu

        settings = self.settings
        if engine == "vllm":
            check_gpu(
                folder,
                prepared,
                settings.max_model_len,
                settings.gpu_memory_utilization,
                settings.tensor_parallel_size,
                settings.max_num_batched_tokens,
                settings.pipeline_parallel_size,
            )


async def _warm(vetter: ConstraintVetter) -> None:
    await asyncio.sleep(WARM_AFTER)
    try:
        await vetter.vet(ANY_OBJECT)
    except MaestraleError as error:
        LOGGER.warning("JSON answers may not work: %s", error)

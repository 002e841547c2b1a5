"""The model and its engine: prepared, checked, started, and ended with all that belongs to them.

`EngineHost` is what owns them in a server, be the HTTP in the same process (`server.py`) or in
several others (`serve/workers/parent.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from maestrale.api.admission import Admission
from maestrale.chat.options import ANY_OBJECT
from maestrale.config.settings import Settings, engines_of, flag
from maestrale.engines.base import Engine, EngineConfig
from maestrale.errors import MaestraleError, SettingsError
from maestrale.logs import LOGGER
from maestrale.models.machine_limits import available_cores
from maestrale.models.prepared import PreparedModel
from maestrale.serve.progress import Progress
from maestrale.supervise.process import Restarts, SupervisedEngine
from maestrale.supervise.vetting import ConstraintVetter, VettingLimits

if TYPE_CHECKING:
    from maestrale.api.operations.node_status import ApiNodeStatus
    from maestrale.cluster.options import ClusterOptions
    from maestrale.serve.nodes.keeper import ApiNodes

T = TypeVar("T")

WARM_AFTER = 1.0  # seconds for which the first requests have the processor to themselves


class EngineHost:
    """One model's engine and vetting processes: `prepare`, `start`, and `close` in any state."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine: Engine | None = None
        self.vetter: ConstraintVetter | None = None
        self.nodes: ApiNodes | None = None
        self._warming: asyncio.Task[None] | None = None

    async def prepare(self, progress: Progress) -> tuple[Path, PreparedModel, EngineConfig]:
        """The model's prepared folder, what is known of it, and what its engine shall be.

        Raises: ModelError, SettingsError.
        """
        from maestrale.engines.choose import choose_engine
        from maestrale.engines.registry import tuned
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
                    f"engine is {choice.name} ({choice.why}): leave it out."
                )
        settings = dataclasses.replace(self.settings, engine=choice.name)
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
        await in_thread(lambda: self._check_fit(folder, prepared, choice.name))
        config = engine_config(settings, str(folder))
        if settings.ray_address is None:  # on a cluster each node is asked what suits it
            config = await in_thread(lambda: tuned(config, progress.update))
        return folder, prepared, config

    async def start(self, config: EngineConfig) -> Engine:
        """Start the engine. Raises: EngineError with the reason."""
        engine = self.engine = self._build(config)
        await engine.start()
        if self.settings.api_nodes == "all":
            from maestrale.serve.nodes.keeper import ApiNodes

            self.nodes = ApiNodes(self.settings, config.engine)
            self.nodes.start()
        return engine

    def elsewhere(self) -> list[ApiNodeStatus]:
        """The API processes on other nodes."""
        return self.nodes.statuses() if self.nodes is not None else []

    def _build(self, config: EngineConfig) -> Engine:
        settings = self.settings
        most, window = settings.max_engine_failures, settings.failure_window
        if settings.replica_range is None:
            return SupervisedEngine(config, restarts=Restarts(most=most, window=window))
        from maestrale.cluster.engine import RayServeEngine

        options = cluster_options(settings, config)
        return RayServeEngine(config, options, most_failures=most, failure_window=window)

    def vet(self, folder: Path, prepared: PreparedModel) -> ConstraintVetter:
        """Make the vetter, and say what else of the engine the operator should know."""
        from maestrale.models.fit_cpu import shortened

        limits = VettingLimits(time=self.settings.grammar_timeout)
        self.vetter = ConstraintVetter(str(folder), limits)
        if self.engine is not None and self.settings.max_model_len is None:
            note = shortened(prepared, self.engine.describe().max_model_len)
            if note:
                LOGGER.warning("%s", note)
        # The first schema would otherwise wait for a process that compiles schemas.
        self._warming = asyncio.create_task(_warm(self.vetter))
        return self.vetter

    async def drain(self, admission: Admission, hurry: asyncio.Event) -> None:
        """Wait for the answers in flight, to the grace's end or `hurry`; then stop the engine.

        Those of other nodes are waited for as well: they need its replicas.
        """
        grace = self.settings.grace
        nodes, self.nodes = self.nodes, None
        elsewhere = asyncio.create_task(nodes.stop(grace)) if nodes is not None else None
        if not admission.idle.is_set():
            LOGGER.info("%d requests have %g s to finish", admission.requests, grace)
        if self.engine is not None:
            # Those that still wait for their turn may have it: the engine closes after them.
            waits = [asyncio.ensure_future(event.wait()) for event in (admission.idle, hurry)]
            await asyncio.wait(waits, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            if elsewhere is not None:
                await asyncio.wait([elsewhere, waits[1]], return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            await self.engine.close(0)
        if elsewhere is not None:
            elsewhere.cancel()
            await asyncio.gather(elsewhere, return_exceptions=True)

    async def close(self) -> None:
        """Leave nothing running, however far it came."""
        if self.nodes is not None:
            await self.nodes.stop(0)
        if self.engine is not None:
            await self.engine.close(0)
        if self._warming is not None:
            self._warming.cancel()
        if self.vetter is not None:
            await self.vetter.close()

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


def cluster_options(settings: Settings, config: EngineConfig) -> ClusterOptions:
    """What the settings ask of Ray, for replicas with engines of this `config`."""
    from maestrale.cluster.options import ClusterOptions, app_name

    least, most = settings.replica_range or (1, 1)
    on_gpu = config.engine == "vllm"
    stages = (settings.pipeline_parallel_size or 1) if on_gpu else 1
    here = settings.ray_address is None
    return ClusterOptions(
        model=settings.model,
        least=least,
        most=most,
        address=settings.ray_address,
        app=app_name(settings.model, settings.revision),
        owner=not settings.ray_join,
        token_file=settings.ray_token_file,
        routing=settings.replica_routing,
        revision=settings.revision,
        cpus=float(config.threads or 1),
        gpus=(settings.tensor_parallel_size or 1) * stages if on_gpu else 0,
        stages=stages,
        pin=here and most > 1,
        api_everywhere=settings.api_nodes == "all",
    )


def threads_of_each(settings: Settings) -> int | None:
    """CPU threads of one engine: the cores of this machine are shared by the replicas on it."""
    if settings.threads is not None or settings.ray_address is not None:
        return settings.threads
    if settings.replica_range is None:
        return None
    return max(1, available_cores() // settings.replica_range[1])


def engine_config(settings: Settings, model_dir: str) -> EngineConfig:
    """The settings that the engine's process needs."""
    return EngineConfig(
        engine=settings.engine,
        model_dir=model_dir,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_bytes=settings.kv_cache_bytes,
        enable_prefix_caching=settings.enable_prefix_caching,
        deterministic=settings.deterministic,
        threads=threads_of_each(settings),
        options=settings.engine_options,
    )


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that doesn't keep the process alive when it is told to stop."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # raised again by who awaits the future
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=body, daemon=True).start()
    return await future

"""What the settings of a model ask of its engine: its configuration, and Ray's."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from maestrale.config.settings import Settings
from maestrale.engines.base import EngineConfig, TaskChoice
from maestrale.models.machine_limits import available_cores

if TYPE_CHECKING:
    from maestrale.cluster.options import ClusterOptions

T = TypeVar("T")
TASKS: dict[str, TaskChoice] = {
    "auto": "auto",
    "chat": "generate",
    "embed": "embed",
    "rerank": "rerank",
}


def cluster_options(settings: Settings, config: EngineConfig, variant: str = "") -> ClusterOptions:
    """What the settings ask of Ray, for replicas with engines of this `config`; `variant`: see
    `app_name`.
    """
    from maestrale.cluster.options import ClusterOptions, app_name

    least, most = settings.replica_range or (1, 1)
    on_gpu = config.engine == "vllm"
    stages = (settings.pipeline_parallel_size or 1) if on_gpu else 1
    here = settings.ray_address is None
    return ClusterOptions(
        model=settings.model,
        least=max(1, least),  # while it is loaded
        most=most,
        address=settings.ray_address,
        app=app_name(settings.model, settings.revision, variant),
        owner=not settings.ray_join,
        token_file=settings.ray_token_file,
        routing=settings.replica_routing,
        revision=settings.revision,
        cpus=0.0 if here else float(config.threads or 1),
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
        task=TASKS[settings.task],
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

"""Whether the context that was asked for can fit, told before the model is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from maestrale.errors import ModelDoesNotFit
from maestrale.models.prepared import PreparedModel

# A GPU's account is an estimate: what is nearer than this to its limit is left to vLLM to find out.
TOLERANCE = 1.1


def check_cpu(
    prepared: PreparedModel,
    weights: int,
    wanted: int | None,
    kv_cache: int | None,
    deterministic: bool,
    weight_format: str | None = None,
) -> None:
    """For the OpenVINO engine. `weights`, `kv_cache` in bytes, `wanted` in tokens.

    Where the form of the weights is still open, the one with the smallest cache counts.

    Raises: ModelDoesNotFit with the number of tokens that can, or what memory is missing.
    """
    from maestrale.models.fit_cpu import DEFAULT_KV_CACHE, kv_capacity, kv_element
    from maestrale.models.machine_limits import available_memory

    kv_cache = kv_cache or DEFAULT_KV_CACHE
    memory = available_memory()
    if weights > memory:
        raise ModelDoesNotFit(
            f"The weights of {prepared.name} take {_gib(weights)}, and {_gib(memory)} of memory "
            "are available. Stop other programs, or take a smaller model or quantisation."
        )
    if prepared.kv_elements is None or prepared.head_dim is None or wanted is None:
        return
    element = kv_element(prepared.head_dim, deterministic, own=weight_format in (None, "a8"))
    capacity = kv_capacity(kv_cache, prepared.kv_elements, element)
    most = min(capacity, prepared.context_length)
    if wanted > prepared.context_length:
        raise ModelDoesNotFit(
            f"--max-model-len {wanted} is more than {prepared.name} was made for; "
            f"{most} tokens can be served."
        )
    if wanted > capacity:
        needed = round(prepared.kv_elements * element) * (wanted + 64)
        raise ModelDoesNotFit(
            f"--max-model-len {wanted} doesn't fit in the KV cache of {_gib(kv_cache)}; {most} "
            f"does. For {wanted} give --kv-cache-memory {-(-needed // (1 << 20))}MiB."
        )


def check_gpu(
    folder: Path,
    prepared: PreparedModel,
    wanted: int | None,
    utilization: float | None,
    tensor_parallel: int | None,
    max_num_batched_tokens: int | None,
    pipeline_parallel: int | None = None,
) -> None:
    """For vLLM, where an NVIDIA GPU is here; of a pipeline's stages all count as equal.

    Raises: ModelDoesNotFit with the number that can.
    """
    from maestrale.models.describe import describe_folder
    from maestrale.models.fit import DEFAULT_UTILIZATION, GpuOptions, plan_gpu
    from maestrale.models.gpus import nvidia_gpus

    gpus = nvidia_gpus()
    if not gpus:
        return
    described = describe_folder(folder)
    options = GpuOptions(
        utilization=utilization or DEFAULT_UTILIZATION,
        tensor_parallel=tensor_parallel or 1,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    stages = pipeline_parallel or 1
    shape = dataclasses.replace(
        described.shape,
        layers=-(-described.shape.layers // stages),
        sliding_layers=-(-described.shape.sliding_layers // stages),
    )
    weights = described.weights and described.weights // stages
    plan = plan_gpu(prepared.name, shape, gpus[0], options, weights=weights)
    machine = plan.machine + (f" for each of {stages} stages" if stages > 1 else "")
    if not plan.fits:
        raise ModelDoesNotFit(
            f"{prepared.name} doesn't fit on {machine}: its weights take "
            f"{_gib(described.weights or 0)}. 'maestrale plan {folder}' shows what does."
        )
    if wanted is not None and wanted > plan.max_context_tokens * TOLERANCE:
        raise ModelDoesNotFit(
            f"--max-model-len {wanted} doesn't fit on {machine}; about "
            f"{plan.max_context_tokens} does. 'maestrale plan {folder}' shows why."
        )


def shortened(prepared: PreparedModel, served: int) -> str:
    """What to say where less than the model's context is served; else nothing."""
    if served >= prepared.context_length:
        return ""
    return (
        f"Serving a context of {served:,} tokens: the {prepared.context_length:,} of "
        f"{prepared.name} don't fit in the KV cache. 'maestrale plan' shows what would help."
    )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"

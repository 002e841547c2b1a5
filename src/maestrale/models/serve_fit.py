"""Whether the context that was asked for can fit, told before the model is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from maestrale.errors import ModelDoesNotFit
from maestrale.models.prepared import PreparedModel

# A GPU's account is an estimate: what is nearer than this to its limit is left to vLLM to find out.
TOLERANCE = 1.1


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

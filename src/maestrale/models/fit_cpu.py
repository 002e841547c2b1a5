"""What fits on the CPU: packed weights, the processes, and the KV cache, which gets the rest.

The CPU engine takes what is worked out here, so a plan tells what `serve` then does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path

from maestrale.errors import EngineError, ModelDoesNotFit, NoMemoryLeft
from maestrale.models.architecture import CPU_TYPES, Architecture, WeightType
from maestrale.models.fit import FitPlan, Term
from maestrale.models.machine_limits import available_memory, own_memory
from maestrale.models.prepared import PreparedModel

BLOCK = 32  # tokens in a block of the KV cache: the kernel's MST_BLOCK
GROUP = 32  # elements of a key that share a scale; heads are filled up to whole ones
PROCESSES = 400 << 20  # bytes: the API's and the engine's, without a model; measured
SPARE = 256 << 20  # left to others, so that nothing is swapped
LEAST_CACHE = 1 << 30  # where memory allows: several answers, and prefixes worth keeping


def block_bytes(layers: int, kv_heads: int, head_dim: int) -> int:
    """A block of the KV cache, in 8 bits: BLOCK tokens in all layers.

    Keys have a scale (float16) for 32 of their elements, values one (float32) for a token and head.
    """
    width = -(-head_dim // GROUP) * GROUP
    keys = BLOCK * width // GROUP * (GROUP + 2)
    values = BLOCK * width + 4 * BLOCK
    return layers * kv_heads * (keys + values)


@dataclass(frozen=True)
class CacheSize:
    """`blocks` of the KV cache, and the longest sequence, in tokens, that is served with them."""

    blocks: int
    max_model_len: int


def left_for_cache(available: int, weights: int) -> int:
    """Bytes that the KV cache may take of `available` ones, beside packed `weights`."""
    return max(0, available - weights - PROCESSES - SPARE)


def memory_to_use() -> int:
    """What is available, and what these processes hold of their PROCESSES bytes already."""
    return available_memory() + min(own_memory(), PROCESSES)


def cache_size(
    *,
    context: int,
    block_bytes: int,
    left: int,
    max_model_len: int | None = None,
    cache_bytes: int | None = None,
) -> CacheSize:
    """The KV cache for a model made for `context` tokens, where `left` bytes are free for it.

    What is asked for, `max_model_len` tokens or `cache_bytes`, is given or refused. Where neither
    is, the whole context is served if it fits, else the longest that does.

    Raises: EngineError that names what does fit.
    """
    if max_model_len is not None and max_model_len > context:
        raise EngineError(
            f"--max-model-len is {max_model_len}, but the model was made for at most {context} "
            "tokens. Lower it."
        )
    length = max_model_len or context
    needed = blocks_for(length) * block_bytes
    budget = cache_bytes if cache_bytes is not None else min(left, max(LEAST_CACHE, needed))
    blocks = budget // block_bytes
    fits = min(length, blocks * BLOCK)
    if fits < 1:
        if cache_bytes is not None:
            raise EngineError(
                f"--kv-cache-memory of {cache_bytes} bytes is too small: a block of {BLOCK} "
                f"tokens takes {block_bytes}."
            )
        raise NoMemoryLeft(
            f"No memory is left for the KV cache: a block of {BLOCK} tokens takes "
            f"{block_bytes} bytes, and {budget} are free for it. Stop other programs, or take a "
            "smaller model or quantisation."
        )
    if max_model_len is not None and fits < max_model_len:
        raise EngineError(_too_long(max_model_len, fits, needed, cache_bytes))
    return CacheSize(blocks, fits)


def blocks_for(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


def _too_long(wanted: int, fits: int, needed: int, cache_bytes: int | None) -> str:
    mebibytes = -(-needed // (1 << 20))
    if cache_bytes is not None:
        return (
            f"--max-model-len {wanted} doesn't fit in the KV cache that --kv-cache-memory gives; "
            f"{fits} does. For {wanted} give --kv-cache-memory {mebibytes}MiB, or leave it out."
        )
    return (
        f"--max-model-len {wanted} needs a KV cache of {mebibytes} MiB, more than the memory that "
        f"is free; {fits} fits. Stop other programs, or lower it."
    )


def plan_cpu(
    model: str,
    shape: Architecture,
    memory: int,
    cache_bytes: int | None = None,
    *,
    weight_type: WeightType = CPU_TYPES["int4"],
    weights: int | None = None,
) -> FitPlan:
    """The account of `memory` bytes, of which the KV cache gets `cache_bytes` where that is given.

    `weights`: what they take once packed, where it is known.
    """
    size = weights if weights is not None else weight_type.bytes_of(shape)
    left = left_for_cache(memory, size)
    block = block_bytes(shape.layers, shape.kv_heads, shape.head_dim)
    terms = [
        Term("memory", memory, "what the system and this process's limits leave available"),
        Term("weights", -size, weight_type.formula if weights is None else "packed, as the file's"),
        Term("processes", -PROCESSES, "Python, the tokenizer; measured without a model"),
        Term("left to others", -SPARE, "so that nothing is swapped"),
    ]
    cache = left if cache_bytes is None else min(left, cache_bytes)
    found = CacheSize(0, 0)
    if cache >= block:
        found = cache_size(
            context=shape.context, block_bytes=block, left=left, cache_bytes=cache_bytes and cache
        )
        why = "what --kv-cache-memory says" if cache_bytes else "what the context needs, or 1 GiB"
        terms.append(Term("not used", found.blocks * block - left, f"the KV cache takes {why}"))
    return FitPlan(
        model=model,
        engine="cpu",
        machine="this machine's CPU",
        weight_type=weight_type.name,
        context=shape.context,
        terms=tuple(term for term in terms if term.size),
        kv_bytes_per_token=-(-block // BLOCK),
        kv_capacity_tokens=found.blocks * BLOCK,
        max_context_tokens=found.max_model_len,
        # All tokens are kept, also where a layer looks at a window of them only.
        shape=replace(shape, sliding_window=None, sliding_layers=0),
        kv_bytes=found.blocks * block,
        kv_element=block / BLOCK / shape.kv_elements,
    )


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

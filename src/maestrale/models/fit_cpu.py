"""What fits on the CPU, with the OpenVINO engine: memory for weights, and for the KV cache."""

from __future__ import annotations

from maestrale.models.architecture import Architecture
from maestrale.models.fit import Plan, Term, make_plan
from maestrale.models.weight_sizes import CPU_TYPES, WeightType

BLOCK = 32  # tokens in a block of the engine's KV cache
DEFAULT_KV_CACHE = 1 << 30  # bytes: what the engine takes where --kv-cache-memory isn't given
EXACT_ELEMENT = 4.0  # bytes: OpenVINO's keys and values in deterministic mode, f32
_BASE = 450 << 20
_SPARE = 256 << 20


def plan_cpu(
    model: str,
    shape: Architecture,
    memory: int,
    kv_cache: int | None = None,
    *,
    deterministic: bool = True,
    kernel: bool = False,
    weight_type: WeightType = CPU_TYPES["int4"],
    weights: int | None = None,
) -> Plan:
    """The account of this machine's `memory`, of which the cache gets at most `kv_cache` bytes.

    `kernel`: the form a8 can be had, and is taken for models that its operation computes.
    """
    kv_cache = kv_cache or DEFAULT_KV_CACHE
    size = weights if weights is not None else weight_type.bytes_of(shape)
    how = weight_type.formula if weights is None else "the file's size"
    taken = 2 * size + _BASE + _SPARE
    left = memory - taken
    terms = [
        Term("memory", memory, "what the system and this process's limits leave available"),
        Term("weights", -size, f"{how}; the file, mapped"),
        Term("weights, repacked", -size, "the same again, in the order of the CPU's kernels"),
        Term("processes", -_BASE, "Python, OpenVINO, the tokenizer; measured without a model"),
        Term("left to others", -_SPARE, "so that nothing is swapped"),
    ]
    if left > kv_cache:
        terms.append(
            Term("not used", kv_cache - left, "the KV cache takes no more than --kv-cache-memory")
        )
    own = kernel and not shape.sliding_window and shape.head_dim % BLOCK == 0
    element = kv_element(shape.head_dim, deterministic, own)
    spare = round(shape.kv_elements * element) * BLOCK
    terms.append(Term("spare block", -spare, f"{BLOCK} tokens that no sequence gets"))
    whole = Architecture(**{**vars(shape), "sliding_window": None, "sliding_layers": 0})
    return make_plan(
        model, "openvino", "this machine's CPU", weight_type.name, whole, terms, element, 1, BLOCK
    )


def kv_element(head_dim: int, deterministic: bool, own: bool) -> float:
    """Bytes of an element of the KV cache. `own`: of the operation for the form a8."""
    if own:
        return own_element(head_dim)
    return EXACT_ELEMENT if deterministic else fast_element(head_dim)


def own_element(head_dim: int) -> float:
    """8 bits, and what stands beside them.

    Keys have a scale and a zero point, 3 bytes, for 32 elements of a token, values for 32 tokens of
    a channel; these have a scale of 4 bytes for each token, too.
    """
    return 1.0 + (2 * 3.0 / BLOCK + 4.0 / head_dim) / 2


def kv_capacity(kv_cache: int, kv_elements: int, element: float) -> int:
    """Tokens that a cache of so many bytes holds, as the engine will count them."""
    block = round(kv_elements * element) * BLOCK
    return max(0, kv_cache // block - 1) * BLOCK


def fast_element(head_dim: int) -> float:
    """Bytes of an element of OpenVINO's without deterministic mode: 8 bits and the scales.

    Keys have scale and zero (4 bytes each) for each channel of a block, so 8 rows more in each
    block; values have them for each token, so 8 bytes more for each head.
    """
    return 1.0 + (8.0 / BLOCK + 8.0 / head_dim) / 2

"""What fits on a GPU, by vLLM's own accounting: known before anything is downloaded or loaded.

vLLM takes `gpu_memory_utilization` of the memory that CUDA reports, loads the weights, runs one
step of `max_num_batched_tokens` to see what activations take at most, estimates its CUDA graphs,
and gives the rest to the KV cache (vllm/v1/worker/gpu_worker.py, determine_available_memory).
Each term here is one of these, computed from the model's shape; docs/guide/plan.md tells the
sources and compares with figures of real machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maestrale.models.architecture import VLLM_TYPES, Architecture, WeightType
from maestrale.models.gpus import MIB, Gpu


def advice(plan: FitPlan, plans: Mapping[str, FitPlan]) -> list[str]:
    """One sentence for each way out; none where the whole context fits."""
    if plan.max_context_tokens >= plan.context:
        return []
    ways = []
    if plan.fits:
        ways.append(
            f"Serve a context of {plan.max_context_tokens:,} tokens: 'serve' does so by itself."
        )
    for name, other in plans.items():
        if other.max_context_tokens > plan.max_context_tokens:
            ways.append(
                f"Weights as {name} (a model quantised so): {other.max_context_tokens:,} tokens."
            )
    if plan.engine == "cpu":
        missing = plan.sequence_bytes(plan.context) - plan.kv_bytes
        unused = -next((term.size for term in plan.terms if term.name == "not used"), 0)
        if unused:
            room = plan.kv_bytes + min(unused, missing)
            ways.append(f"--kv-cache-memory {-(-room // (1 << 20))}MiB, for which there is room.")
        return ways
    if plan.kv_element > 1 and plan.fits:
        ways.append("--kv-cache-dtype fp8: half the KV cache for a token.")
    if not plan.fits:
        return [way for way in ways if way.startswith("Weights")] + [_more_gpus(plan)]
    activations = next(-term.size for term in plan.terms if term.name == "activations")
    if activations > (1 << 30):
        ways.append("A smaller --max-num-batched-tokens: activations take more than 1 GiB.")
    ways.append("More GPUs (--tensor-parallel-size 2), or one with more memory.")
    return ways


def _more_gpus(plan: FitPlan) -> str:
    """How many GPUs hold the weights, with a tenth of each left for the cache."""
    weights = next(-term.size for term in plan.terms if term.name == "weights")
    room = (sum(term.size for term in plan.terms) + weights) * 0.9
    if room <= 0:
        return "A GPU with more memory: this one can't hold what the engine needs besides."
    needed = next((each for each in (2, 4, 8, 16, 32) if weights / each <= room), None)
    if needed is None:
        return "A GPU with more memory."
    return f"{needed} such GPUs (--tensor-parallel-size {needed}), or one with more memory."


BLOCK = 16  # tokens in a block of vLLM's KV cache
ACTIVATION = 2  # bytes of an activation: bf16 or fp16, also where weights are quantised
DEFAULT_UTILIZATION = 0.9
USERS_AT = (2048, 8192, 32768)  # tokens

_MIB_PER_PIECE = 0.2
_NON_TORCH = 256 * MIB
_SAMPLER_BYTES = 34


@dataclass(frozen=True)
class Term:
    """One line of the account. `size` in bytes; what is taken away is negative."""

    name: str
    size: int
    formula: str


@dataclass(frozen=True)
class FitPlan:
    """What fits. Lengths in tokens, sizes in bytes.

    `kv_capacity_tokens` counts the tokens that all sequences together may have in the cache, each
    at most `max_context_tokens` long.
    """

    model: str
    engine: str
    machine: str
    weight_type: str
    context: int  # what the model was made for
    terms: tuple[Term, ...]
    kv_bytes_per_token: int
    kv_capacity_tokens: int
    max_context_tokens: int
    shape: Architecture
    kv_bytes: int
    kv_element: float

    @property
    def fits(self) -> bool:
        return self.max_context_tokens > 0

    def sequence_bytes(self, tokens: int) -> int:
        """KV cache of one sequence; layers with a sliding window stop growing at the window."""
        return sequence_bytes(self.shape, tokens, self.kv_element)

    def users_at(self, tokens: int) -> float:
        """How many sequences of this length fit at once."""
        if tokens > self.context or not self.fits:
            return 0.0
        return self.kv_bytes / self.sequence_bytes(tokens)


@dataclass(frozen=True)
class GpuOptions:
    """vLLM's settings that decide about memory; None where vLLM picks by the GPU."""

    utilization: float = DEFAULT_UTILIZATION
    tensor_parallel: int = 1
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    kv_cache_fp8: bool = False
    cuda_graphs: bool = True


def plan_gpu(
    model: str,
    shape: Architecture,
    gpu: Gpu,
    options: GpuOptions = GpuOptions(),
    weight_type: WeightType = VLLM_TYPES["bf16"],
    weights: int | None = None,
) -> FitPlan:
    """The account of one GPU of `options.tensor_parallel`; `weights`: their bytes, where known."""
    split = options.tensor_parallel
    tokens = options.max_num_batched_tokens or default_batched_tokens(gpu)
    seqs = options.max_num_seqs or default_seqs(gpu)
    visible = gpu.visible
    usable = round(visible * options.utilization)
    size = weights if weights is not None else weight_type.bytes_of(shape)
    activations, how = peak_activations(shape, tokens, seqs, split)
    graphs = cuda_graphs(shape, seqs, split) if options.cuda_graphs else 0
    terms = [
        Term("GPU memory", gpu.memory, f"{gpu.name}, as nvidia-smi reports it"),
        Term("kept by the driver", visible - gpu.memory, gpu.visible_source),
        Term(
            "left to others",
            usable - visible,
            f"1 - gpu_memory_utilization {options.utilization:g}; CUDA's context must fit here",
        ),
        Term("weights", -(size // split), _shared(_weights_formula(weights, weight_type), split)),
        Term("activations", -activations, how),
        Term("CUDA graphs", -graphs, _graphs_formula(shape, seqs, options.cuda_graphs)),
        Term(
            "libraries",
            -_NON_TORCH * (1 if split == 1 else 2),
            "outside PyTorch: kernels, cuBLAS, attention workspaces"
            + (", NCCL" if split > 1 else "")
            + "; published logs say 60 to 250 MiB, the upper end is taken",
        ),
    ]
    kv_element = 1.0 if options.kv_cache_fp8 else 2.0
    return _plan(model, "vllm", f"{split} x {gpu.name}", weight_type.name, shape, terms,
                 kv_element, min(split, shape.kv_heads), BLOCK)  # fmt: skip


def _plan(
    model: str,
    engine: str,
    machine: str,
    weight_type: str,
    shape: Architecture,
    terms: Sequence[Term],
    kv_element: float,
    split: int,
    block: int,
) -> FitPlan:
    left = sum(term.size for term in terms) * split  # of all GPUs: each holds its heads
    per_token = round(shape.kv_elements * kv_element)
    room = max(left, 0)
    capacity = room // per_token // block * block
    longest = _longest(shape, room, kv_element, block)
    return FitPlan(
        model=model,
        engine=engine,
        machine=machine,
        weight_type=weight_type,
        context=shape.context,
        terms=tuple(terms),
        kv_bytes_per_token=per_token,
        kv_capacity_tokens=capacity,
        max_context_tokens=longest,
        shape=shape,
        kv_bytes=room,
        kv_element=kv_element,
    )


make_plan = _plan


def sequence_bytes(shape: Architecture, tokens: int, kv_element: float) -> int:
    """KV cache of one sequence of this length, in bytes."""
    window = shape.sliding_window or tokens
    full, sliding = shape.layers - shape.sliding_layers, shape.sliding_layers
    counted = full * tokens + sliding * min(tokens, window)
    return max(1, round(counted * shape.kv_elements_of_layer * kv_element))


def _longest(shape: Architecture, room: int, kv_element: float, block: int) -> int:
    """The longest context that fits, by halving; a multiple of `block` unless it is the model's."""
    if sequence_bytes(shape, shape.context, kv_element) <= room:
        return shape.context
    low, high = 0, shape.context // block
    while low < high:
        middle = (low + high + 1) // 2
        if sequence_bytes(shape, middle * block, kv_element) <= room:
            low = middle
        else:
            high = middle - 1
    return low * block


def default_batched_tokens(gpu: Gpu) -> int:
    """vLLM's default for its server (vllm/engine/arg_utils.py)."""
    if gpu.memory >= 160 << 30:
        return 16384
    return 8192 if _is_large(gpu) else 2048


def default_seqs(gpu: Gpu) -> int:
    return 1024 if _is_large(gpu) else 256


def _is_large(gpu: Gpu) -> bool:
    return gpu.memory >= 70 << 30 and "a100" not in gpu.name.casefold()


def peak_activations(shape: Architecture, tokens: int, seqs: int, split: int) -> tuple[int, str]:
    """Bytes that a step of `tokens` takes at most, and how they come about.

    The blocks of one layer, as PyTorch's allocator holds them: residual, input and output of the
    attention and its queries, keys and values; then, larger, so in blocks of their own, the
    two products of the feed-forward part and their combination. Layers reuse them. Or sampling:
    `seqs` rows of logits, in several types while they are sorted.
    """
    query = shape.heads * shape.head_dim // split
    kv = 2 * shape.kv_heads * shape.head_dim // min(split, shape.kv_heads)
    inner = 3 * shape.feed_forward // split * min(shape.experts, 2)
    width = 3 * shape.hidden + 2 * query + kv + inner
    layer = width * tokens * ACTIVATION
    sampling = seqs * shape.vocab * _SAMPLER_BYTES
    if layer >= sampling:
        return layer, (
            f"{tokens} tokens (max_num_batched_tokens) x {width} elements of a layer x 2 bytes"
        )
    return sampling, (
        f"sampling: {seqs} sequences (max_num_seqs) x {shape.vocab} logits x {_SAMPLER_BYTES} "
        "bytes (16- and 32-bit logits, sorted values and indices)"
    )


def _graph_counts(seqs: int) -> tuple[int, int, int]:
    """(sizes captured piece by piece, sizes captured whole, the largest): vLLM's defaults."""
    largest = min(2 * seqs, 512)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    sizes = [size for size in sizes if size <= largest]
    return len(sizes), sum(size <= seqs for size in sizes), largest


def cuda_graphs(shape: Architecture, seqs: int, split: int) -> int:
    pieces, whole, largest = _graph_counts(seqs)
    pool, _ = peak_activations(shape, largest, 0, split)
    return round((pieces * (shape.layers + 1) * _MIB_PER_PIECE + whole) * MIB) + pool


def _graphs_formula(shape: Architecture, seqs: int, on: bool) -> str:
    if not on:
        return "none: enforce_eager"
    pieces, whole, largest = _graph_counts(seqs)
    return (
        f"{pieces} sizes x {shape.layers + 1} pieces x {_MIB_PER_PIECE} MiB + {whole} whole x "
        f"1 MiB + activations of {largest} tokens"
    )


def _weights_formula(weights: int | None, weight_type: WeightType) -> str:
    return weight_type.formula if weights is None else "the files' sizes"


def _shared(formula: str, split: int) -> str:
    return formula if split == 1 else f"({formula}) / {split} GPUs"

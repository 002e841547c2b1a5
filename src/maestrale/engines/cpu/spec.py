"""DecoderSpec: every knob of a decoder-only transformer under its usual name.

What is the same for all layers is one value, what differs is a tuple with one entry a layer. Made
from a model's metadata by `architectures/`; the kernel's `mst_model` has the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SILU, GELU_TANH, CLIPPED_SWIGLU = "silu", "gelu_tanh", "clipped_swiglu"


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first elements of a head, the first half with the second.

    Element i of a half turns by position * inverse_frequencies[i]; sines and cosines are multiplied
    by `scale`. `long`: the frequencies that hold where more than the spec's `original_context`
    tokens are served (longrope); empty: the same.
    """

    inverse_frequencies: tuple[float, ...]
    scale: float = 1.0
    long: tuple[float, ...] = ()

    @property
    def dims(self) -> int:
        """How many elements of a head are turned."""
        return 2 * len(self.inverse_frequencies)


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of each MLP; `width`: of one expert's.

    `softmax_first`: probabilities over all experts, of which the largest are used; else over the
    used ones alone. `renormalise`: the used ones' probabilities sum to 1.
    """

    count: int
    used: int
    width: int
    softmax_first: bool = True
    renormalise: bool = True
    scale: float = 1.0


@dataclass(frozen=True)
class MatrixShape:
    """`count` matrices of one type and shape."""

    type: str
    rows: int
    columns: int
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A decoder. Scales of 1 and soft caps, windows and lengths of 0 mean: none.

    `windows`, `layer_ropes`: one entry a layer; a rope below 0: none. A window counts the token
    itself. `temperature_beta`: queries at position p are multiplied by
    1 + beta * log(1 + floor(p / temperature_length)). `notes`: what a person should know of how
    the model is served. `matrices` and `vector_elements`: all weights, for what they take.
    """

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    context: int
    norm_epsilon: float
    attention_scale: float
    windows: tuple[int, ...]
    ropes: tuple[Rope, ...]
    layer_ropes: tuple[int, ...]
    original_context: int = 0
    whole_head_norm: bool = False
    attention_soft_cap: float = 0.0
    temperature_beta: float = 0.0
    temperature_length: int = 0
    activation: str = SILU
    clip_alpha: float = 0.0
    clip_limit: float = 0.0
    experts: Experts | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float = 0.0
    tied: bool = False
    matrices: tuple[MatrixShape, ...] = ()
    vector_elements: int = 0
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Weights of the whole model, tied ones once."""
        matrices = sum(each.rows * each.columns * each.count for each in self.matrices)
        return matrices + self.vector_elements

    def serving(self, context: int) -> DecoderSpec:
        """The decoder where up to `context` tokens are served: that decides for longrope."""
        if not self.original_context or context <= self.original_context:
            return replace(self, ropes=tuple(replace(rope, long=()) for rope in self.ropes))
        long = tuple(
            replace(rope, inverse_frequencies=rope.long or rope.inverse_frequencies, long=())
            for rope in self.ropes
        )
        return replace(self, ropes=long)

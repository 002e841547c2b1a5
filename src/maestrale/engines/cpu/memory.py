"""What a decoder takes in memory, from its spec alone: packed weights, and the KV cache.

The kernel itself says the same (`mst_packed_bytes`, `mst_block_bytes`); this needs no kernel.
"""

from __future__ import annotations

from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.models import fit_cpu
from maestrale.models.fit_cpu import GROUP
from maestrale.models.tensor_info import EXACT_TYPES, GGML_NUMBERS, GGML_TYPES

OUTPUTS = 16  # rows of a tile, to which matrices are filled up
ROUNDED = 34  # bytes for 32 values of a type that is rounded to 8 bits
# Exact types take what they take in the file, but for these.
_BLOCKS = {
    "Q3_K": 114,
    **dict.fromkeys(("IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_XXS", "IQ1_S", "TQ1_0", "TQ2_0"), 138),
    **dict.fromkeys(("IQ2_XS", "IQ2_S", "IQ1_M"), 146),
}


def packed_bytes(kind: str, rows: int, columns: int) -> int:
    """What a matrix of a type takes once it is packed."""
    width, size = GROUP, ROUNDED
    if kind in EXACT_TYPES:
        given = GGML_TYPES[GGML_NUMBERS[kind]]
        width, size = given.elements, _BLOCKS.get(kind, given.size)
    blocks = -(-columns // width)
    return -(-rows // OUTPUTS) * OUTPUTS * blocks * size


def weight_bytes(spec: DecoderSpec) -> int:
    """What all weights take: packed matrices, and vectors in float32."""
    matrices = sum(
        each.count * packed_bytes(each.type, each.rows, each.columns) for each in spec.matrices
    )
    return matrices + 4 * spec.vector_elements


def block_bytes(spec: DecoderSpec) -> int:
    """What a block of the KV cache takes: BLOCK tokens in all layers."""
    return fit_cpu.block_bytes(spec.layers, spec.kv_heads, spec.head_dim)


def rounded_types(spec: DecoderSpec) -> list[str]:
    """The types among its weights whose values are rounded to 8 bits in groups of 32."""
    return sorted({each.type for each in spec.matrices} - EXACT_TYPES)

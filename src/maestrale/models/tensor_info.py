"""Where a tensor lies in a file, whatever the file's format; the types that GGUF files have, and
which of these the CPU engine multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TensorType:
    """`elements` of a row make a block of `size` bytes."""

    name: str
    elements: int
    size: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape` as numpy has it: rows before columns (GGUF writes the reverse).

    `type`: ggml's name (F32, Q4_K, ...). `offset`: in `file`, where its `size` bytes begin.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    size: int


# ggml's number of a type → what it is; without removed types (Q4_2, Q4_0_4_4, ...) and those that
# no file has (Q8_1, Q8_K).
GGML_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
}
GGML_NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}
# Types whose every value the CPU engine holds, and those that it rounds to 8 bits in groups of 32.
EXACT_TYPES = frozenset({
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S",
    "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
    "MXFP4",
})  # fmt: skip
ROUNDED_TYPES = frozenset({"F32", "F16", "BF16"})
MATRIX_TYPES = EXACT_TYPES | ROUNDED_TYPES

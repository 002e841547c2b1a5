"""How many bytes a model's weights take, by the type they are kept in."""

from __future__ import annotations

from dataclasses import dataclass

from maestrale.models.architecture import Architecture


@dataclass(frozen=True)
class WeightType:
    """`linear`, `other`: bytes for each weight of the layers, and of embeddings and norms."""

    name: str
    linear: float
    other: float
    formula: str

    def bytes_of(self, shape: Architecture) -> int:
        outside = shape.embedding * (1 if shape.tied else 2)
        outside += shape.hidden * (shape.norms * shape.layers + 1)
        return round((shape.parameters - outside) * self.linear + outside * self.other)


_BESIDE = "embedding, output projection and norms stay at 2 bytes"

# For vLLM. AWQ and GPTQ keep for each group of 128 weights a scale (16 bits) and a zero (4 bits).
VLLM_TYPES = {
    "bf16": WeightType("bf16", 2, 2, "parameters x 2 bytes"),
    "fp8": WeightType("fp8", 1, 2, f"1 byte for each weight of the layers; {_BESIDE}"),
    "int8": WeightType("int8", 1, 2, f"1 byte for each weight of the layers; {_BESIDE}"),
    "int4": WeightType(
        "int4",
        (4 + 20 / 128) / 8,
        2,
        f"4 bits and 20 bits for each 128 weights of the layers (AWQ, GPTQ); {_BESIDE}",
    ),
}
# For the CPU engine, as it packs them: a 16-bit scale for each 32 (GGUF's Q4_0, Q8_0).
CPU_TYPES = {
    "bf16": WeightType("bf16", 34 / 32, 34 / 32, "rounded to 8 bits, a scale for each 32 weights"),
    "int8": WeightType("int8", 34 / 32, 34 / 32, "8 bits and a 16-bit scale for each 32 weights"),
    "int4": WeightType("int4", 18 / 32, 18 / 32, "4 bits and a 16-bit scale for each 32 weights"),
}

"""Where the experts of a layer lie: in one tensor, or each in its own."""

from __future__ import annotations

from typing import Any

from maestrale.engines.cpu.architectures.names import Naming
from maestrale.engines.cpu.spec import DecoderSpec, Experts
from maestrale.engines.cpu.weights.roles import Rows, Vector
from maestrale.engines.cpu.weights.source import WeightSource
from maestrale.errors import ModelError

BLOCKS, SCALES = "_blocks", "_scales"  # of MXFP4 in safetensors


def find_experts(
    source: WeightSource, spec: DecoderSpec, naming: Naming, prefix: str
) -> dict[str, Any]:
    """The fields of a layer's roles that are about experts. Raises: ModelError."""
    experts = spec.experts
    assert experts is not None
    return _Experts(source, spec, naming, prefix, experts).roles()


class _Experts:
    def __init__(
        self, source: WeightSource, spec: DecoderSpec, naming: Naming, prefix: str, experts: Experts
    ) -> None:
        self._source, self._naming, self._prefix = source, naming, prefix
        self._count, self._width, self._hidden = experts.count, experts.width, spec.hidden

    def roles(self) -> dict[str, Any]:
        router = self._name("router")
        self._source.take(f"{router}.weight", (self._count, self._hidden))
        found: dict[str, Any] = {
            "router": Vector(f"{router}.weight", self._count * self._hidden),
            "router_bias": self._vector("router", f"{router}.bias", self._count),
        }
        if self._fused():
            return found | self._gate_and_up() | self._stacked("down", self._hidden, self._width)
        if self._source.has(self._name("expert_gate").format(0) + ".weight"):
            return found | self._single()
        for part in ("gate", "up"):
            found |= self._stacked(part, self._width, self._hidden)
        return found | self._stacked("down", self._hidden, self._width)

    def _fused(self) -> bool:
        name = self._name("experts_gate_up")
        return any(self._source.has(name + end) for end in ("", ".weight", BLOCKS))

    def _gate_and_up(self) -> dict[str, Any]:
        """Gate and up in one tensor: one behind the other, or row by row in turn."""
        name, rows = self._name("experts_gate_up"), 2 * self._width
        found: dict[str, Any] = {}
        turns = self._naming.gate_up_interleaved
        step, second = (2, 1) if turns else (1, self._width)
        matrices = self._matrices(name, rows, self._hidden)
        for part, begin in (("gate", 0), ("up", second)):
            found[f"expert_{part}"] = tuple(
                Rows(
                    each.tensor, self._width, self._hidden, each.first + begin, step,
                    transposed=each.transposed, scales=each.scales,
                )
                for each in matrices
            )  # fmt: skip
        bias = self._vector("gate_up", f"{name}_bias", self._count * rows, (self._count, rows))
        if bias is not None:
            if not turns:
                raise ModelError(f"{self._source.path}: the tensor {bias.tensor!r} isn't served.")
            for begin, part in enumerate(("gate", "up")):
                size = self._count * self._width
                found[f"expert_{part}_bias"] = Vector(bias.tensor, size, begin, 2)
        return found

    def _stacked(self, part: str, rows: int, columns: int) -> dict[str, Any]:
        """All experts' matrices of one kind in one tensor."""
        name = self._name(f"experts_{part}")
        folder = not self._source.has(f"{name}.weight")
        bias = f"{name}_bias" if folder else f"{name}.bias"
        return {
            f"expert_{part}": self._matrices(name, rows, columns),
            f"expert_{part}_bias": self._vector(
                part, bias, self._count * rows, (self._count, rows)
            ),
        }

    def _matrices(self, name: str, rows: int, columns: int) -> tuple[Rows, ...]:
        shape = (self._count, rows, columns)
        numbers = range(self._count)
        if self._source.has(name + BLOCKS):
            blocks, scales = name + BLOCKS, name + SCALES
            taken = (
                self._source.take(blocks, (*shape[:2], columns // 32, 16)),
                self._source.take(scales, (*shape[:2], columns // 32)),
            )
            odd = next((tensor for tensor in taken if tensor.type != "U8"), None)
            if odd is not None or columns % 32:
                raise ModelError(f"{self._source.path}: the tensor {blocks!r} is no MXFP4.")
            return tuple(
                Rows(blocks, rows, columns, number * rows, scales=scales) for number in numbers
            )
        full = f"{name}.weight" if self._source.has(f"{name}.weight") else name
        if self._naming.experts_transposed:
            self._source.matrix(full, (self._count, columns, rows))
            return tuple(
                Rows(full, rows, columns, number * rows, transposed=True) for number in numbers
            )
        self._source.matrix(full, shape)
        return tuple(Rows(full, rows, columns, number * rows) for number in numbers)

    def _single(self) -> dict[str, Any]:
        """Each expert's matrices in tensors of their own."""
        found: dict[str, Any] = {}
        sizes = {
            "gate": (self._width, self._hidden),
            "up": (self._width, self._hidden),
            "down": (self._hidden, self._width),
        }
        for part, shape in sizes.items():
            pattern = self._name(f"expert_{part}") + ".weight"
            names = [pattern.format(number) for number in range(self._count)]
            for name in names:
                self._source.matrix(name, shape)
            found[f"expert_{part}"] = tuple(Rows(name, *shape) for name in names)
        return found

    def _vector(
        self, role: str, name: str, size: int, shape: tuple[int, ...] | None = None
    ) -> Vector | None:
        must = role in self._naming.biases
        if not must and (role not in self._naming.optional_biases or not self._source.has(name)):
            return None
        self._source.take(name, shape or (size,))
        return Vector(name, size)

    def _name(self, role: str) -> str:
        return self._prefix + self._naming.names[role]

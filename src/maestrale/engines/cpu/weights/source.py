"""A model's metadata and tensors, in whichever format, as the architectures read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maestrale.engines.cpu.keys import Keys
from maestrale.engines.cpu.weights.mapped import MappedTensors
from maestrale.errors import ModelError
from maestrale.models.tensor_info import MATRIX_TYPES, TensorInfo


@dataclass
class WeightSource:
    """`path` is what was given; `architecture` names the family in its format's words.

    `keys` and `take` tick off what is used: what is left at the end was not honoured.
    """

    path: Path
    kind: Literal["gguf", "folder"]
    architecture: str
    keys: Keys
    mapped: MappedTensors
    notes: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name."""
        return self.mapped.tensors

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self.tensors

    def take(self, name: str, *shapes: tuple[int, ...]) -> TensorInfo:
        """A tensor, which must have one of the shapes.

        Raises: ModelError where it is missing or has another shape.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelError(
                f"{self.path} lacks the tensor {name!r}, so it is no complete model. Download it "
                "again, or get the model from another place."
            )
        if shapes and tensor.shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise ModelError(
                f"{tensor.file}: the tensor {name!r} has the shape {list(tensor.shape)} where the "
                f"model's metadata asks for {expected}. The file is damaged or mislabelled; get "
                "another."
            )
        self.used.add(name)
        return tensor

    def matrix(self, name: str, *shapes: tuple[int, ...]) -> TensorInfo:
        """A tensor that is multiplied: `take`, and its type must be one of those served."""
        tensor = self.take(name, *shapes)
        if tensor.type not in MATRIX_TYPES:
            raise ModelError(
                f"{tensor.file}: the tensor {name!r} has the type {tensor.type}, which isn't "
                "served. Get the model in another quantisation, such as Q4_K_M or Q8_0."
            )
        return tensor

    def values(self, name: str, size: int) -> NDArray[np.float32]:
        """The values of a small table with so many elements. Raises: ModelError."""
        values = self.mapped.values(self.take(name)).reshape(-1)
        if len(values) != size or not np.isfinite(values).all():
            raise ModelError(
                f"{self.path}: the tensor {name!r} has {len(values)} values where {size} finite "
                "ones are needed. The file is damaged or mislabelled; get another."
            )
        return values

    def rows_of(self, name: str) -> int:
        """How many rows a matrix has that must be there. Raises: ModelError."""
        shape = self.take(name).shape
        return math.prod(shape[:-1])

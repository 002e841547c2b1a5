"""What a file of this folder says of its family of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maestrale.engines.cpu.architectures.names import Naming
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.source import WeightSource


@dataclass(frozen=True)
class Form:
    """A family in one format: the names it has there, its spec, its naming of tensors.

    `names`: of `general.architecture`, or of config.json's `model_type`. `defaults`: what a
    config.json may leave out. `harmless`: its keys that change nothing.
    """

    names: tuple[str, ...]
    spec: Callable[[WeightSource], DecoderSpec]
    naming: Callable[[WeightSource, DecoderSpec], Naming]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Family:
    """Architectures that are told apart by a few knobs."""

    gguf: Form
    folder: Form


def always(naming: Naming) -> Callable[[WeightSource, DecoderSpec], Naming]:
    """The same naming for every model of a family."""
    return lambda source, spec: naming

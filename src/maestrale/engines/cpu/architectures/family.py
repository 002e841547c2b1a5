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
    config.json may leave out, as transformers has it; `own_defaults`: by name, what differs from
    that. `harmless`: its keys that change nothing.
    """

    names: tuple[str, ...]
    spec: Callable[[WeightSource], DecoderSpec]
    naming: Callable[[WeightSource, DecoderSpec], Naming]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    own_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()

    def completed(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json with what it leaves out; null says that there is none of a thing."""
        said = {key for key, value in given.items() if value is not None or key not in _ROPE}
        if said & _ROPE:
            said |= _ROPE
        defaults = {**self.defaults, **self.own_defaults.get(name, {})}
        values = {key: value for key, value in defaults.items() if key not in said}
        return values | {key: value for key, value in given.items() if value is not None}


_ROPE = frozenset({"rope_parameters", "rope_scaling"})  # two names of one thing; null is neither


@dataclass(frozen=True)
class Family:
    """Architectures that are told apart by a few knobs."""

    gguf: Form
    folder: Form


def always(naming: Naming) -> Callable[[WeightSource, DecoderSpec], Naming]:
    """The same naming for every model of a family."""
    return lambda source, spec: naming

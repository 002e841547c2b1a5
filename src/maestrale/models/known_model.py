"""One row of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

from maestrale.models.architecture import Architecture
from maestrale.models.sampling_defaults import NEUTRAL, SamplingDefaults


@dataclass(frozen=True)
class KnownModel:
    """`name` is how the hub writes it; `aliases` are accepted too (letter case is ignored).

    Its safetensors, for vLLM, are in the repository of that name. `cpu_source` is where a GGUF
    file for the CPU comes from: ORG/NAME, or ORG/NAME:VARIANT for one of several.
    `mistral_version` is the tokenizer that its prompts need (models/mistral_vocabulary.py).
    `package_file` is (distribution, file name) for weights that a Python package carries. `gated`:
    the hub asks for a token and accepted terms. `sampling`: what its card advises, for a GGUF file
    that doesn't say.
    """

    name: str
    architecture: Architecture
    aliases: tuple[str, ...] = ()
    cpu_source: str | None = None
    gated: bool = False
    mistral_version: str | None = None
    package_file: tuple[str, str] | None = None
    sampling: SamplingDefaults = NEUTRAL

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2].lower()

"""A model's files → what is known of the decoder in them, without its weights."""

from __future__ import annotations

from pathlib import Path

from maestrale.engines.cpu.architectures import DescribedModel, describe
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.gguf import open_gguf
from maestrale.engines.cpu.weights.safetensors import open_folder
from maestrale.models.local import refuse_other_files


def open_model(path: Path) -> DescribedModel:
    """A GGUF file (of several parts, any) or a Hugging Face folder, read to the end of its tables.

    Raises: ModelError that says what is missing, damaged or not served, and what to do.
    """
    if path.is_dir():
        return describe(open_folder(path))
    refuse_other_files(path)
    return describe(open_gguf(path))


def spec_of(path: Path) -> DecoderSpec:
    """What the decoder in a model's files computes; reads metadata only. Raises: ModelError."""
    described = open_model(path)
    described.source.mapped.close()
    return described.spec

"""A model's files → what is known of the decoder in them, without its weights."""

from __future__ import annotations

from pathlib import Path

from maestrale.engines.cpu.architectures import Described, describe
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.gguf import open_gguf
from maestrale.engines.cpu.weights.safetensors import PICKLES, open_folder
from maestrale.errors import ModelError


def open_model(path: Path) -> Described:
    """A GGUF file (of several parts, any) or a Hugging Face folder, read to the end of its tables.

    Raises: ModelError that says what is missing, damaged or not served, and what to do.
    """
    if path.is_dir():
        return describe(open_folder(path))
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{path} is a pickle, which can run code when it is read, so it is not opened. Get the "
            "model as safetensors or GGUF."
        )
    if path.suffix.lower() == ".safetensors":
        raise ModelError(f"{path} is one file of a model. Give its folder: {path.parent}")
    return describe(open_gguf(path))


def spec_of(path: Path) -> DecoderSpec:
    """What the decoder in a model's files computes; reads metadata only. Raises: ModelError."""
    described = open_model(path)
    described.source.mapped.close()
    return described.spec

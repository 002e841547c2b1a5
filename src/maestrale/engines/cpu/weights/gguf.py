"""A model in GGUF, as the architectures read it."""

from __future__ import annotations

from pathlib import Path

from maestrale.engines.cpu.keys import Keys
from maestrale.engines.cpu.weights.mapped import MappedTensors
from maestrale.engines.cpu.weights.source import WeightSource
from maestrale.errors import ModelError
from maestrale.models.gguf_file import read_gguf_model

_OTHER_KINDS = {
    "adapter": "an adapter (LoRA), which changes another model",
    "mmproj": "the image or audio part of a model",
    "vocab": "a vocabulary without a model",
    "imatrix": "a table for quantising",
}
# Metadata outside of the architecture's own keys that would change the result.
_REFUSED = ("adapter.", "xielu.")


def open_gguf(path: Path) -> WeightSource:
    """The model that a GGUF file is, or is a part of. Raises: ModelError."""
    file = read_gguf_model(path, texts=False)
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError(f"{path} doesn't say of what architecture its model is. Get another file.")
    kind = file.metadata.get("general.type", "model")
    if kind in _OTHER_KINDS:
        raise ModelError(f"{path} is {_OTHER_KINDS[kind]}. Give the model's own GGUF file.")
    odd = next((key for key in file.metadata if key.startswith(_REFUSED)), None)
    if odd is not None:
        raise ModelError(f"{path} says {odd!r}, which changes the model in a way not served here.")
    keys = Keys(str(path), file.metadata, f"{architecture}.")
    return WeightSource(path, "gguf", architecture, keys, MappedTensors(file.tensors))

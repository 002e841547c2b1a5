"""A model in a Hugging Face folder of safetensors, as the architectures read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maestrale.engines.cpu.architectures import form_of
from maestrale.engines.cpu.keys import Keys
from maestrale.engines.cpu.weights.mapped import MappedTensors
from maestrale.engines.cpu.weights.source import WeightSource
from maestrale.errors import ModelError
from maestrale.models.file_selection import PICKLES
from maestrale.models.folder_words import read_json
from maestrale.models.safetensors_file import indexed_files, read_safetensors
from maestrale.models.tensor_info import TensorInfo

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ADAPTER, CONFIG = "adapter_config.json", "config.json"
# Models whose decoder stands under `text_config`, and how its tensors begin.
_TEXT_PREFIXES = ("model.language_model.", "language_model.")
_BARE_EMBEDDING = "embed_tokens.weight"
_OTHER_PARTS = (
    "vision_tower.", "multi_modal_projector.", "vision_model.", "patch_merger.", "audio_tower.",
    "vision_encoder.", "vision_language_adapter.", "multimodal_projector.", "visual.",
)  # fmt: skip


def open_folder(folder: Path) -> WeightSource:
    """The model in a folder. Raises: ModelError for what is missing, damaged or not served."""
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder} is an adapter (LoRA), which changes another model. Merge it into its base "
            "model (peft's merge_and_unload) and give the folder that this makes."
        )
    _refuse_pickles(folder)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} is no model's folder: it lacks {CONFIG}.")
    whole = read_json(folder / CONFIG)
    nested = whole.get("text_config")
    text = {**whole, **nested} if isinstance(nested, Mapping) else whole
    architecture = text.get("model_type")
    if not isinstance(architecture, str):
        raise ModelError(f"{folder}/config.json doesn't say what model it is of (model_type).")
    form = form_of("folder", architecture, str(folder))
    _check_quantisation(folder, whole, text)
    tensors, left_out = _decoder(_tensors(folder))
    given = {key: value for key, value in text.items() if key not in _OUTER}
    keys = Keys(f"{folder}/config.json", form.completed(architecture, given))
    source = WeightSource(folder, "folder", architecture, keys, MappedTensors(tensors))
    if left_out:
        source.notes.append(
            f"{folder} has an image or audio part, which isn't served: the model takes text only."
        )
    return source


_OUTER = frozenset({
    "text_config", "vision_config", "audio_config", "quantization_config", "quantization",
    "image_token_index",
    "vision_feature_layer", "projector_hidden_act", "spatial_merge_size", "mm_tokens_per_image",
    "multimodal_projector_bias", "boi_token_index", "eoi_token_index", "image_token_id",
})  # fmt: skip


def _decoder(tensors: dict[str, TensorInfo]) -> tuple[dict[str, TensorInfo], bool]:
    """The decoder's tensors as they are called in a model of text, and whether others are there."""
    found: dict[str, TensorInfo] = {}
    left_out = False
    if _BARE_EMBEDDING in tensors:  # a decoder saved by itself, as embedding models are
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        bare = name.removeprefix("model.")
        if bare.startswith(_OTHER_PARTS):
            left_out = True
            continue
        for prefix in _TEXT_PREFIXES:
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                name = rest if rest.startswith(("model.", "lm_head.")) else f"model.{rest}"
        found[name] = tensor
    return found, left_out


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has its weights as pickles ({pickles[0]}), which can run code when they "
            "are read, so they are not opened. Get the model as safetensors or GGUF."
        )


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file():
        names = indexed_files(index)
    elif single.is_file():
        names = [SINGLE]
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise ModelError(f"{folder} has no weights ({SINGLE}). Download it again.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the files that {INDEX} names, {missing[0]} first. "
            "The download was probably cut off; fetch it again."
        )
    tensors: dict[str, TensorInfo] = {}
    for name in names:
        for tensor in read_safetensors(folder / name).values():
            if tensor.name in tensors:
                other = tensors[tensor.name].file.name
                raise ModelError(
                    f"{folder}: the tensor {tensor.name!r} is in {other} and in {name}. Remove "
                    "the file that doesn't belong to the model."
                )
            tensors[tensor.name] = tensor
    return tensors


def _check_quantisation(folder: Path, whole: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    names = ("quantization_config", "quantization", "compression_config")
    given = next((each[name] for each in (whole, text) for name in names if each.get(name)), None)
    if given is None:
        return
    method = given.get("quant_method") if isinstance(given, Mapping) else None
    if method != "mxfp4":
        raise ModelError(
            f"{folder} is quantised ({method or 'in a way that it does not name'}), which isn't "
            "served from safetensors. Get the model in BF16, or as a GGUF file."
        )

"""Which files of a model an engine needs, told by their names alone. Pickles never are."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from maestrale.errors import ModelError
from maestrale.models.catalog import find_model

WeightsKind = Literal["safetensors", "gguf"]

OPENVINO_MODEL = ("openvino_model.xml", "openvino_model.bin")
_SMALL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "vocab.json", "merges.txt", "tokenizer.model", "tokenizer.model.v*", "tekken.json",
    "additional_chat_templates/*.jinja", "modules.json", "*_Pooling/config.json",
    "*_LogitScore/config.json",
)  # fmt: skip
_SAFETENSORS_BESIDE = ("*.safetensors.index.json", "params.json", "preprocessor_config.json",
                       "processor_config.json", "quant*_config.json")  # fmt: skip
# Types of GGUF files, the best trade of size and quality first.
_TYPES = (
    "Q4_K_M", "Q4_K_L", "Q4_K_XL", "Q4_K_S", "Q4_0", "Q4_1", "MXFP4", "MXFP4_MOE", "IQ4_NL",
    "IQ4_XS", "Q5_K_M", "Q5_K_L", "Q5_K_XL", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q6_K_L", "Q6_K_XL",
    "Q8_0", "Q8_K_XL", "Q3_K_XL", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS",
    "IQ3_XXS", "Q2_K_XL", "Q2_K_L", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS",
    "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0",
)  # fmt: skip
# A model in these alone is taken from safetensors where there are some.
_WHOLE_TYPES = ("BF16", "F16", "F32")
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_EXPORTED = re.compile(r"[-_.]?(?:int8|int4|fp16|nf4)?(?:[-_](?:cw|asym|sym))?[-_](?:ov|openvino)$")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # never opened: they can run code


@dataclass(frozen=True)
class FileSelection:
    """`names` in the order of the listing; `weights` is the first file of weights among them.

    `others`: what else there was to choose from, where one GGUF file was picked of several.
    `chosen_by`: how one of them is named instead.
    """

    kind: WeightsKind
    names: tuple[str, ...]
    weights: str
    others: tuple[str, ...] = ()
    chosen_by: str = ""

    @property
    def complete(self) -> bool:
        """Whether all parts of a split GGUF model are among the names."""
        part = _PART.search(self.weights)
        return part is None or len(self.names) == int(part[2])


def select_files(
    repo: str, names: Sequence[str], engine: str, variant: str = "", *, local: bool = False
) -> FileSelection:
    """The files of `repo` that `engine` needs. `variant` picks a GGUF file: Q8_0, or its name.

    `local`: `repo` is a folder, of which one GGUF file is named by its path.
    Raises: ModelError when there is nothing for this engine, with what there is instead.
    """
    top = [name for name in names if "/" not in name]
    safetensors = _safetensors(top)
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    has_ir = all(name in top for name in OPENVINO_MODEL)
    if "adapter_config.json" in top and not safetensors and not ggufs and not has_ir:
        raise ModelError(_adapter(repo))
    if engine == "vllm":
        if safetensors:
            return _folder(names, safetensors)
        raise ModelError(_nothing_for_vllm(repo, top, has_ir, ggufs))
    quantised = any(_type(name) in _TYPES for name in _models(ggufs))
    if variant or quantised or (ggufs and not safetensors):
        return _gguf(repo, _models(ggufs), variant, local)
    if safetensors:
        return _folder(names, safetensors)
    raise ModelError(_exported(repo) if has_ir else _no_weights(repo, top))


def _safetensors(names: Sequence[str]) -> list[str]:
    """The weights in Hugging Face's naming; Mistral's second copy (consolidated) only alone."""
    files = [
        name
        for name in names
        if name.endswith(".safetensors") and not name.startswith("adapter_model")
    ]
    models = [name for name in files if not name.startswith("consolidated")]
    return models or files


def _folder(names: Sequence[str], safetensors: Sequence[str]) -> FileSelection:
    small = _matching(names, (*_SMALL, *_SAFETENSORS_BESIDE))
    return _ordered("safetensors", names, [*small, *safetensors], safetensors[0])


def _models(ggufs: Sequence[str]) -> dict[str, list[str]]:
    """The models among GGUF files: the name of each, or of its first part → all its parts."""
    models: dict[str, list[str]] = {}
    for name in ggufs:
        if not _NO_MODEL.search(name.rpartition("/")[2]):
            models.setdefault(_PART.sub(r"-00001-of-\2", name), []).append(name)
    return {first: sorted(parts) for first, parts in models.items()}


def picked(repo: str, selection: FileSelection) -> str:
    """What to say of the file that was picked of several; empty where there was no choice."""
    if not selection.others:
        return ""
    return (
        f"Of {repo} the file {selection.weights} is taken. There are also "
        f"{', '.join(selection.others)}: {selection.chosen_by} takes one of them."
    )


def _gguf(repo: str, models: Mapping[str, list[str]], variant: str, local: bool) -> FileSelection:
    called: Callable[[str], str] = str if local else _called
    found = _named(models, variant) if variant else _best(models)
    if found is not None:
        others = () if variant else tuple(sorted(called(name) for name in models if name != found))
        chosen_by = f"{repo.rstrip('/')}/NAME" if local else f"{repo}:NAME"
        return FileSelection("gguf", tuple(models[found]), found, others, chosen_by)
    there = ", ".join(sorted({called(name) for name in models})) or "none"
    if variant:
        raise ModelError(f"{repo} has no GGUF file {variant!r}. It has: {there}.")
    if not models:
        raise ModelError(
            f"{repo} holds GGUF files, but of no language model: image parts (mmproj) "
            "or tables for quantising (imatrix). Get the model's own file."
        )
    one = f"{repo.rstrip('/')}/FILE.gguf" if local else f"{repo}:FILE.gguf"
    raise ModelError(
        f"{repo} has several GGUF files, and their names don't tell how they differ. Name one: "
        f"{one}. It has: {there}."
    )


def _best(models: Mapping[str, list[str]]) -> str | None:
    for kind in (*_TYPES, *_WHOLE_TYPES):
        for name in models:
            if _type(name) == kind:
                return name
    return next(iter(models)) if len(models) == 1 else None


def _named(models: Mapping[str, list[str]], variant: str) -> str | None:
    wanted = variant.casefold().removesuffix(".gguf")
    for name, parts in models.items():
        if any(wanted == part.casefold().removesuffix(".gguf") for part in parts):
            return name
    for name in models:
        if _type(name).casefold() == wanted:
            return name
    for name in models:  # UD-Q4_K_XL, or a file within a folder
        stem = _PART.sub("", name).casefold().removesuffix(".gguf")
        if re.search(rf"(?:^|[-._/]){re.escape(wanted)}$", stem):
            return name
    return None


def _called(name: str) -> str:
    """What to give as the variant: the type of weights, or the file's name."""
    return _type(name) or name


def _type(name: str) -> str:
    """`model-Q4_K_M.gguf`, `model.q8_0.gguf` → the type; empty where the name doesn't tell."""
    match = re.search(
        r"[-._]((?:I|T)?Q\d\w*|MXFP4(?:_MOE)?|B?F(?:16|32)|FP(?:16|32))\.gguf$",
        _PART.sub("", name),
        re.IGNORECASE,
    )
    return match[1].upper().replace("FP16", "F16").replace("FP32", "F32") if match else ""


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """A pattern's star stands for no slash."""
    kept = list(patterns)
    return [
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, one) and name.count("/") == one.count("/") for one in kept)
    ]


def _ordered(
    kind: WeightsKind, names: Sequence[str], kept: Iterable[str], weights: str
) -> FileSelection:
    chosen = set(kept)
    return FileSelection(kind, tuple(name for name in names if name in chosen), weights)


def _nothing_for_vllm(repo: str, names: Sequence[str], has_ir: bool, ggufs: Sequence[str]) -> str:
    if has_ir or ggufs:
        what = "an OpenVINO model" if has_ir else "GGUF files"
        return (
            f"{repo} holds {what}; vLLM needs safetensors. Give the original model's name, or "
            "--engine cpu."
        )
    return _no_weights(repo, names)


def _exported(repo: str) -> str:
    """For an OpenVINO model, with where the same model comes from in a format that is read."""
    short = _EXPORTED.sub("", repo.rstrip("/").rpartition("/")[2])
    known = find_model(short)
    source = (
        f"its name alone, {known.name}, or {known.cpu_source}"
        if known is not None and known.cpu_source
        else f"the repository of the original model, or a GGUF file of it (bartowski/{short}-GGUF "
        "is a usual name)"
    )
    return (
        f"{repo} is a model in OpenVINO's format, which the CPU engine does not read: it takes "
        f"GGUF files and safetensors. Give the same model so: {source}."
    )


def _adapter(repo: str) -> str:
    return (
        f"{repo} is an adapter (LoRA), not a model by itself. Merge it into its base model (with "
        "peft: merge_and_unload, then save_pretrained), and give the merged folder."
    )


def _no_weights(repo: str, names: Sequence[str]) -> str:
    if _matching(names, tuple(f"*{suffix}" for suffix in PICKLES)):
        return (
            f"{repo} holds its weights as pickles, which can run code when they are read, so "
            "they are not fetched. Look for one with safetensors or GGUF files; some models "
            "have them in another --revision."
        )
    return f"{repo} holds no weights that can be served: no safetensors or GGUF files."

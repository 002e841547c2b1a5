"""Which files of a model an engine needs, told by their names alone. Pickles never are."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from maestrale.errors import ModelError

Kind = Literal["safetensors", "openvino", "gguf"]

OPENVINO_MODEL = ("openvino_model.xml", "openvino_model.bin")
_SMALL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "vocab.json", "merges.txt", "tokenizer.model", "tokenizer.model.v*", "tekken.json",
)  # fmt: skip
_SAFETENSORS_BESIDE = ("*.safetensors.index.json", "params.json", "preprocessor_config.json",
                       "processor_config.json", "quant*_config.json")  # fmt: skip
# What OpenVINO's reader of GGUF takes, the best trade of size and quality first.
_QUANTISATIONS = ("Q4_K_M", "Q4_0", "Q4_1", "Q4_K_S", "Q8_0", "Q6_K", "F16", "BF16")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


@dataclass(frozen=True)
class Wanted:
    """`names` in the order of the listing; `weights` is the first file of weights among them."""

    kind: Kind
    names: tuple[str, ...]
    weights: str


def wanted_files(repo: str, names: Sequence[str], engine: str, variant: str = "") -> Wanted:
    """The files of `repo` that `engine` needs. `variant` picks a GGUF file: Q8_0, or its name.

    Raises: ModelError when there is nothing for this engine, with what there is instead.
    """
    top = [name for name in names if "/" not in name]
    safetensors = _safetensors(top)
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    has_ir = all(name in top for name in OPENVINO_MODEL)
    if engine == "vllm":
        if safetensors:
            small = _matching(top, (*_SMALL, *_SAFETENSORS_BESIDE))
            return _ordered("safetensors", names, [*small, *safetensors], safetensors[0])
        raise ModelError(_nothing_for_vllm(repo, top, has_ir, ggufs))
    if variant or (ggufs and not has_ir):
        gguf = _gguf(repo, ggufs, variant)
        return Wanted("gguf", (gguf,), gguf)
    if has_ir:
        return _ordered("openvino", names, [*_matching(top, _SMALL), *OPENVINO_MODEL],
                        "openvino_model.bin")  # fmt: skip
    raise ModelError(_nothing_for_cpu(repo, top, bool(safetensors)))


def _safetensors(names: Sequence[str]) -> list[str]:
    """The weights in Hugging Face's naming; Mistral's second copy (consolidated) only alone."""
    files = [name for name in names if name.endswith(".safetensors")]
    models = [name for name in files if not name.startswith("consolidated")]
    return models or files


def _gguf(repo: str, ggufs: Sequence[str], variant: str) -> str:
    if variant:
        wanted = variant.casefold()
        found = [name for name in ggufs if name.casefold() == wanted] or [
            name for name in ggufs if _quantisation(name).casefold() == wanted
        ]
        if found:
            return found[0]
        there = ", ".join(sorted({_quantisation(name) or name for name in ggufs})) or "none"
        raise ModelError(f"{repo} has no GGUF file {variant!r}. It has: {there}.")
    whole = [name for name in ggufs if not _SPLIT.search(name)]
    for quantisation in _QUANTISATIONS:
        for name in whole:
            if _quantisation(name).casefold() == quantisation.casefold():
                return name
    if len(whole) == 1:
        return whole[0]
    raise ModelError(
        f"{repo} has GGUF files, none of a kind known to work here ({', '.join(_QUANTISATIONS)}, "
        f"in one file). Name one: {repo}:FILE.gguf"
    )


def _quantisation(name: str) -> str:
    """`model-Q4_K_M.gguf`, `model.q8_0.gguf` → the kind; empty where the name doesn't tell."""
    match = re.search(r"[-._]((?:I?Q\d\w*)|B?F(?:16|32))\.gguf$", name, re.IGNORECASE)
    return match[1] if match else ""


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    kept = list(patterns)
    return [name for name in names if any(fnmatch.fnmatchcase(name, one) for one in kept)]


def _ordered(kind: Kind, names: Sequence[str], kept: Iterable[str], weights: str) -> Wanted:
    chosen = set(kept)
    return Wanted(kind, tuple(name for name in names if name in chosen), weights)


def _nothing_for_vllm(repo: str, names: Sequence[str], has_ir: bool, ggufs: Sequence[str]) -> str:
    if has_ir or ggufs:
        what = "an OpenVINO model" if has_ir else "GGUF files"
        return (
            f"{repo} holds {what}; vLLM needs safetensors. Give the original model's name, or "
            "--engine openvino."
        )
    return _no_weights(repo, names)


def _nothing_for_cpu(repo: str, names: Sequence[str], safetensors: bool) -> str:
    if not safetensors:
        return _no_weights(repo, names)
    short = repo.rpartition("/")[2]
    return (
        f"{repo} holds safetensors. The CPU engine (openvino) reads GGUF files and OpenVINO "
        "models; turning safetensors into one needs torch, which is not installed here. Name a "
        f"repository that holds one: OpenVINO/{short}-int4-ov and bartowski/{short}-GGUF are "
        "usual names; or convert it once with 'optimum-cli export openvino' and give the "
        "folder. On a machine with an NVIDIA GPU, --engine vllm serves it as it is."
    )


def _no_weights(repo: str, names: Sequence[str]) -> str:
    if _matching(names, _PICKLES):
        return (
            f"{repo} holds its weights as pickles, which can run code when they are read, so "
            "they are not fetched. Look for one with safetensors or GGUF files; some models "
            "have them in another --revision."
        )
    return f"{repo} holds no weights that can be served: no safetensors, OpenVINO or GGUF files."

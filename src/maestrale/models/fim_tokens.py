"""The marks of fill-in-the-middle prompts: which tokens of a vocabulary they are.

A model that was trained to fill in the middle has control tokens for what stands before the gap,
what stands behind it, and where the answer begins. Their names differ by family; a GGUF file may
also state them by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

# What GGUF files call them, and what older files did.
_STATED = {
    "prefix": ("fim_pre", "prefix"),
    "suffix": ("fim_suf", "suffix"),
    "middle": ("fim_mid", "middle"),
    "pad": ("fim_pad",),
    "repo": ("fim_rep",),
    "separator": ("fim_sep",),
}


class FimMarks(Struct, frozen=True, kw_only=True):
    """Ids of the marks. `middle` None: the suffix comes first, and the answer follows the prefix.

    `ends`: what ends an answer beside the model's own ends: a mark, the padding, another file.
    """

    prefix: int
    suffix: int
    middle: int | None
    ends: tuple[int, ...] = ()


class _Family(NamedTuple):
    prefix: str
    suffix: str
    middle: str | None
    others: tuple[str, ...] = ()


_FAMILIES = (
    # Qwen-Coder, CodeGemma, Granite, Seed-Coder
    _Family(
        *("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<|fim_pad|>", "<|fim_repo|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
    ),
    # StarCoder, and Granite's code models
    _Family(
        *("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<fim_pad>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"),
    ),
    # SantaCoder, Granite
    _Family("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<fim-pad>", "<fim-repo>")),
    # DeepSeek-Coder
    _Family(
        "<\uff5cfim\u2581begin\uff5c>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<\uff5cfim\u2581end\uff5c>",
    ),
    # CodeLlama
    _Family("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", ("\u2581<EOT>",)),
    # GLM
    _Family("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    # Codestral
    _Family("[PREFIX]", "[SUFFIX]", None, ("[MIDDLE]",)),
)
_NAMES = frozenset(
    name
    for family in _FAMILIES
    for name in (family.prefix, family.suffix, family.middle, *family.others)
)
KNOWN_MODELS = "Codestral, Qwen-Coder, StarCoder, CodeLlama and DeepSeek-Coder"


def stated_marks(metadata: Mapping[str, Any], count: int) -> dict[str, int]:
    """The ids of marks that a GGUF file with `count` tokens states, by what each is for."""
    found: dict[str, int] = {}
    for role, keys in _STATED.items():
        for key in keys:
            value = metadata.get(f"tokenizer.ggml.{key}_token_id")
            if type(value) is int and 0 <= value < count:
                found.setdefault(role, value)
    return found


def fim_marks(ids: Mapping[str, int], stated: Mapping[str, int] | None = None) -> FimMarks | None:
    """The marks among these tokens, whose names are known, or which are stated; None: no marks."""
    family = next((each for each in _FAMILIES if _needed(each) <= ids.keys()), None)
    stated = stated or {}
    named: dict[str, int | None] = {}
    others: list[int] = []
    if family is not None:
        named = {
            "prefix": ids[family.prefix],
            "suffix": ids[family.suffix],
            "middle": None if family.middle is None else ids[family.middle],
        }
        others = [ids[name] for name in family.others if name in ids]
    needed = {"prefix", "suffix", "middle"}
    if needed <= stated.keys():
        named = {role: stated[role] for role in needed}
    if not named:
        return None
    others += [token for role, token in stated.items() if role not in needed]
    prefix, suffix, middle = named["prefix"], named["suffix"], named["middle"]
    assert prefix is not None
    assert suffix is not None
    ends = dict.fromkeys(token for token in (prefix, suffix, middle, *others) if token is not None)
    return FimMarks(prefix=prefix, suffix=suffix, middle=middle, ends=tuple(ends))


def marks_in(pieces: Iterable[str], metadata: Mapping[str, Any] | None = None) -> frozenset[int]:
    """The ids of all marks among the pieces of a vocabulary, in order of id."""
    listed: Sequence[str] = list(pieces)
    ids = {piece: token for token, piece in enumerate(listed) if piece in _NAMES}
    return marks_among(ids, stated_marks(metadata or {}, len(listed)))


def marks_among(ids: Mapping[str, int], stated: Mapping[str, int] | None = None) -> frozenset[int]:
    """The ids of all marks among tokens, by name."""
    found = fim_marks(ids, stated)
    return frozenset() if found is None else frozenset(found.ends)


def _needed(family: _Family) -> set[str]:
    return {name for name in (family.prefix, family.suffix, family.middle) if name is not None}

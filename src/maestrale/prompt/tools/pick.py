"""Which tool-call format a model has: told by its tokenizer, or by what its template renders."""

from __future__ import annotations

import re

from maestrale.errors import ModelError
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.tools import harmony, llama, mistral
from maestrale.prompt.tools.base import ToolFormat
from maestrale.prompt.tools.layout import GENERIC, LAYOUTS
from maestrale.prompt.tools.layout_format import LayoutFormat
from maestrale.prompt.tools.probe import Probed, bare_json_key, layout_of

PARSERS = (*LAYOUTS, "llama3_json", "mistral", "openai")  # vLLM's names, where it has them

# What the instruction that a template writes for tools says of the format, where it renders no
# calls: the first that is found counts.
_SIGNS: tuple[tuple[str, str], ...] = (
    (r"<arg_key>", "glm45"),
    (r"<function=[^<]*<parameter=", "qwen3_coder"),
    (r"<\uff5ctool\u2581call\u2581begin\uff5c>function", "deepseek_v3"),
    (r"<\uff5ctool\u2581call\u2581begin\uff5c>", "deepseek_v31"),
    (r"<\|tool_call_begin\|>", "kimi_k2"),
    (r"<\|tool_call_start\|>", "lfm2"),
    (r"<\|tool_call>", "gemma4"),
    (r"<start_function_call>", "functiongemma"),
    (r"<\|tool_call\|>", "granite"),
    (r"<tool_call>", "hermes"),
    (r"\[TOOL_CALLS\]", "mistral"),
    (r"\[func_name1\(|\[[a-z_]+\([a-z_0-9]+=", "pythonic"),
    (r'"name": ?[^",}]{1,60}, ?"parameters"', "llama3_json"),
)
_OWN_TOKENS = (("<|tool_call_start|>", "lfm2"),)


def format_of_probe(probed: Probed, vocabulary: Vocabulary) -> ToolFormat | None:
    """The format of what a template was seen to render; None when it is none that is known."""
    rendered = probed.one or ""
    if harmony.is_harmony(rendered, vocabulary):
        return harmony.HarmonyFormat(vocabulary)
    if mistral.CALLS in rendered and mistral.CALLS in vocabulary.control_ids:
        return _mistral(vocabulary, named=mistral.ARGS in rendered)
    if key := bare_json_key(probed, vocabulary):
        return llama.LlamaFormat(vocabulary, key)
    layout = layout_of(probed, vocabulary)
    if layout is not None:
        return LayoutFormat(layout, vocabulary)
    if probed.shows_calls:
        return None
    for pattern, name in _SIGNS:
        if re.search(pattern, probed.instruction, re.DOTALL):
            if name == "mistral" and mistral.CALLS not in vocabulary.control_ids:
                continue
            if name == "mistral":
                return _mistral(vocabulary, named=mistral.ARGS in probed.instruction)
            return format_by_name(name, vocabulary)
    if probed.shows_tools:
        for token, name in _OWN_TOKENS:
            if token in vocabulary.control_ids:
                return format_by_name(name, vocabulary)
    return None


def format_by_name(name: str, vocabulary: Vocabulary) -> ToolFormat:
    """The format called `name`, one of PARSERS. Raises: ModelError when the tokens lack."""
    if name in LAYOUTS:
        return LayoutFormat(LAYOUTS[name], vocabulary)
    if name == "llama3_json":
        return llama.LlamaFormat(vocabulary)
    token = harmony.CHANNEL if name == "openai" else mistral.CALLS
    if token not in vocabulary.control_ids:
        raise ModelError(
            f"This model's tokenizer has no {token}: --tool-call-parser {name} can't be "
            "used with it."
        )
    if name == "openai":
        return harmony.HarmonyFormat(vocabulary)
    return _mistral(vocabulary, named=False)


def format_of_mistral(version: int, vocabulary: Vocabulary) -> ToolFormat | None:
    """The format of Mistral's tokenizer `version` (3 for v3); None for v1, which has none."""
    if version < 2 or mistral.CALLS not in vocabulary.control_ids:
        return None
    return _mistral(vocabulary, named=version >= 11)


def generic_format(vocabulary: Vocabulary) -> ToolFormat:
    """The format that a model which knows none is told of: the one that most models know."""
    return LayoutFormat(GENERIC, vocabulary)


def _mistral(vocabulary: Vocabulary, *, named: bool) -> ToolFormat:
    named = named and mistral.ARGS in vocabulary.control_ids
    return mistral.MistralFormat(vocabulary, named=named)

"""llama.cpp's, Ollama's and vLLM's names of what exists here: read as the field that is meant.

A setting may be said under several names if they agree. Ollama's `options` hold more of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from msgspec import structs

from maestrale.api.answering import Serving
from maestrale.api.openai.foreign_fields import (
    OPTIONS_IGNORED,
    OPTIONS_UNSUPPORTED,
    check_foreign,
)
from maestrale.api.openai.schemas import OTHER_NAMES, OllamaOptions, OtherNames
from maestrale.api.validation import check_seed
from maestrale.errors import InvalidRequest, Location, Sent, UnsupportedParameter

B = TypeVar("B", bound=OtherNames)

# What each of the names is for, in the reference.
MEANINGS = {
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "-1, as the penalties look at prompt and answer; another value is refused "
    "where there is a penalty",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens; -1 and -2: as many as there is room for",
    "num_ctx": "taken where the context is that long",
    "options": "Ollama's: the fields in it are read as if they stood beside it",
    "think": "true and false as enable_thinking, a word as reasoning_effort",
    "structured_outputs": "one of json, regex, choice, grammar and json_object, as response_format",
    "guided_json": "response_format with this schema",
    "guided_regex": "the answer is text that the regular expression matches",
    "guided_choice": "the answer is one of these texts",
    "guided_grammar": "the answer is a text of this grammar: Lark, as llguidance has it, or GBNF",
    "grammar": "as guided_grammar",
    "json_schema": "as guided_json",
    "format": "'json' or a schema, as response_format",
    "continue_final_message": "the answer goes on from the last message, as with its 'prefix'",
    "include_stop_str_in_output": "the stop string that ends an answer is part of it",
    "return_token_ids": "the answer tells the ids of prompt and answer",
}


def with_own_names(
    body: B, serving: Serving, *, length: str = "max_tokens", least: int = 0
) -> tuple[B, dict[Location, Sent]]:
    """The body in our own names, and what its client called them. `length`: our name of the
    longest answer, which has at least `least` tokens.

    Raises: InvalidRequest where two names contradict each other, naming the second;
    UnsupportedParameter.
    """
    given: dict[str, Any] = {}
    renamed: dict[Location, Sent] = {}
    named: dict[str, Sent] = {}
    for name, value, at in _said(body):
        own = length if name == "max_tokens" else name
        if own == "seed":
            check_seed(value, at)
        if own == length and -1 < value < least:
            raise InvalidRequest(f"'{at}' must be at least {least}.", at=at)
        before = given.get(own, getattr(body, own, None))
        if before is not None and before != value:
            raise InvalidRequest(
                f"'{named.get(own, Sent(own))}' ({before}) and '{at}' ({value}) are two names of "
                "the same setting, and differ.",
                at=at,
            )
        given[own] = value
        if before is None:
            named[own] = at
            renamed[Location(name)] = at
    if length != "max_tokens" and given.get(length) == -1:
        given[length] = None
    unified = structs.replace(body, **given)
    _check_context(body, serving)
    _check_window(unified, serving)
    return unified, renamed


def _said(body: OtherNames) -> Iterator[tuple[str, Any, Sent]]:
    """What is said under another name: our name, the value, the place. Raises: InvalidRequest."""
    for name, own in OTHER_NAMES.items():
        value = getattr(body, name)
        if value is not None:
            yield own, _length(value) if own == "max_tokens" else value, Sent(name)
    if body.options is None:
        return
    at = Sent("options")
    check_foreign(body.options, at, unsupported=OPTIONS_UNSUPPORTED, ignored=OPTIONS_IGNORED)
    for name in OllamaOptions.__struct_fields__:
        value = getattr(body.options, name)
        if name in _CHECKED or name not in _MEANT or value is None:
            continue
        own = OTHER_NAMES.get(name, name)
        if own not in type(body).__struct_fields__ and own != "max_tokens":
            raise UnsupportedParameter(f"'{at.at(name)}' is not supported here.", at=at.at(name))
        yield own, _length(value) if own == "max_tokens" else value, at.at(name)


_CHECKED = ("num_ctx", "repeat_last_n")
_MEANT = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "num_predict"),
        *("repeat_penalty", "presence_penalty", "frequency_penalty"),
    }
)


def _length(value: int) -> int:
    return max(-1, value)  # Ollama's -2: until the context is full


def _both(body: OtherNames, name: str) -> Iterator[tuple[int, Sent]]:
    """What the body says of it, and what its options say."""
    inner = None if body.options is None else getattr(body.options, name)
    for value, at in ((getattr(body, name), Sent(name)), (inner, Sent("options", name))):
        if value is not None:
            yield value, at


def _check_context(body: OtherNames, serving: Serving) -> None:
    """Raises: UnsupportedParameter for a longer context than there is."""
    for value, at in _both(body, "num_ctx"):
        if value > serving.context_length:
            raise UnsupportedParameter(
                f"'{at}' asks for a context of {value} tokens; this server has "
                f"{serving.context_length}. It is set at the server's start, by --max-model-len.",
                at=at,
            )


def _check_window(body: OtherNames, serving: Serving) -> None:
    """Raises: UnsupportedParameter where a penalty is to look at a part of the tokens only."""
    said = getattr(body, "repetition_penalty", None)
    penalty = serving.sampling.repetition_penalty if said is None else said
    others = (getattr(body, f"{name}_penalty", None) for name in ("presence", "frequency"))
    if penalty == 1 and not any(others):
        return
    for value, at in _both(body, "repeat_last_n"):
        if value != -1:
            raise UnsupportedParameter(
                f"'{at}' is not supported: penalties look at all tokens, which is -1.", at=at
            )

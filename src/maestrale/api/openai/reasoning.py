"""What OpenAI's, Mistral's, vLLM's and OpenRouter's clients say of thoughts, as one wish."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from maestrale.api.openai.schemas import EFFORTS, ChatRequest, ReasoningBody
from maestrale.chat.options import REASONING, Reasoning
from maestrale.chat.thinking import EFFORT, ON_OFF, VARIABLES, Variables
from maestrale.errors import InvalidRequest, Location, Sent

MAX_KWARGS_BYTES = 1024
T = TypeVar("T")


class Wish(Struct, frozen=True):
    """What was asked for, where in the body, and what the template is told besides.

    `shown`: thoughts are part of the answer that is sent. `as_chunks`: in Mistral's way.
    """

    reasoning: Reasoning
    variables: Variables
    renamed: dict[Location, Sent]
    shown: bool
    as_chunks: bool


def read_reasoning(body: ChatRequest) -> Wish:
    """Raises: InvalidRequest where two fields contradict each other, naming the second."""
    kwargs = template_kwargs(body.chat_template_kwargs)
    told = Sent("chat_template_kwargs")
    asked, thinking = body.reasoning or ReasoningBody(), body.thinking
    effort, effort_at = _agreed(
        (body.reasoning_effort, Sent("reasoning_effort")),
        (asked.effort, Sent("reasoning", "effort")),
        (_taken(kwargs, EFFORT, str), told.at(EFFORT)),
        (body.think if isinstance(body.think, str) else None, Sent("think")),
    )
    budget, budget_at = _agreed(
        (body.thinking_token_budget, Sent("thinking_token_budget")),
        (asked.max_tokens, Sent("reasoning", "max_tokens")),
        (thinking.budget_tokens if thinking else None, Sent("thinking", "budget_tokens")),
    )
    types = {"enabled": True, "disabled": False}
    enabled, enabled_at = _agreed(
        (body.enable_thinking, Sent("enable_thinking")),
        (body.think if isinstance(body.think, bool) else None, Sent("think")),
        (asked.enabled, Sent("reasoning", "enabled")),
        (types.get(thinking.type) if thinking else None, Sent("thinking")),
        (True if body.prompt_mode else None, Sent("prompt_mode")),
        *((_taken(kwargs, name, bool), told.at(name)) for name in ON_OFF),
        (None if effort is None else effort != "none", effort_at),
    )
    at = next((at for at in (effort_at, budget_at, enabled_at) if at is not None), None)
    renamed = {} if at is None else {REASONING: at}
    if budget_at is not None:
        renamed[REASONING.at("budget")] = budget_at
    return Wish(
        Reasoning(
            enabled=enabled,
            effort=None if effort == "none" else effort,
            budget=None if budget == -1 else budget,
        ),
        tuple(kwargs.items()),
        {**renamed, VARIABLES: told},
        shown=body.include_reasoning is not False and not asked.exclude,
        as_chunks=body.prompt_mode is not None,
    )


def template_kwargs(raw: Raw) -> dict[str, Any]:
    """What the template is told by name. Which names there are is known with the model.

    Raises: InvalidRequest.
    """
    at = Sent("chat_template_kwargs")
    if len(bytes(raw)) > MAX_KWARGS_BYTES:
        raise InvalidRequest(
            f"'chat_template_kwargs' is larger than {MAX_KWARGS_BYTES} bytes.", at=at
        )
    try:
        given = msgspec.json.decode(raw, type=dict[str, Any] | None)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest("'chat_template_kwargs' must be an object.", at=at) from error
    return {name: value for name, value in (given or {}).items() if value is not None}


def _taken(kwargs: dict[str, Any], name: str, kind: type[T]) -> T | None:
    """A variable that says the same as a field; one of another type is left, and refused later."""
    value = kwargs.get(name)
    if not isinstance(value, kind) or (name == EFFORT and value not in EFFORTS):
        return None
    del kwargs[name]
    return value


def _agreed(*said: tuple[T | None, Sent | None]) -> tuple[T | None, Sent | None]:
    """What several fields say, and the first that says it. Raises: InvalidRequest."""
    given = [(value, at) for value, at in said if value is not None]
    if not given:
        return None, None
    (first, first_at), *others = given
    for value, at in others:
        if value != first:
            raise InvalidRequest(f"'{at}' says otherwise than '{first_at}'.", at=at)
    return first, first_at

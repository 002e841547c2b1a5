"""A Responses body → what the chat service understands.

What contradicts itself, or asks for what can't be done, is refused by name before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from maestrale.api.answering import Serving
from maestrale.api.dialect import AnswerRequest
from maestrale.api.openai.constraints import read_constraint
from maestrale.api.openai.foreign_fields import UNSUPPORTED_FIELDS as FOREIGN_FIELDS
from maestrale.api.openai.foreign_fields import check_foreign, refuse_but
from maestrale.api.openai.other_names import with_own_names
from maestrale.api.openai.reading import sampling_of, stops_of
from maestrale.api.openai.responses.items import Item, messages_of
from maestrale.api.openai.responses.objects import echoed
from maestrale.api.openai.responses.schemas import (
    DONE_ANYWAY,
    LOGPROBS,
    OF_CHATS,
    UNSUPPORTED_FIELDS,
    ResponsesRequest,
)
from maestrale.api.openai.responses.spelling import ResponseSpelling
from maestrale.api.openai.responses.tools import namespaces_of, places_of, read_tool_use
from maestrale.api.validation import check_seed, refuse_given
from maestrale.chat.options import (
    ANY_OBJECT,
    CONSTRAINT,
    REASONING,
    Conversation,
    Options,
    Reasoning,
    schema_constraint,
)
from maestrale.engines.base import Constraint
from maestrale.errors import InvalidRequest, Location, Sent, UnsupportedParameter, quoted
from maestrale.prompt.messages import MESSAGES

# What there can be more of in answers with built-in tools, and so never is here.
HARMLESS_INCLUDES = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
)
FOREIGN = {name: why for name, why in FOREIGN_FIELDS.items() if name not in UNSUPPORTED_FIELDS}


def read_response(
    body: ResponsesRequest, items: Sequence[Item], *, store: bool, serving: Serving
) -> AnswerRequest:
    """A Response to these items, with those before them. `store`: whether it is kept.

    Raises: InvalidRequest, UnsupportedParameter.
    """
    check_foreign(body, unsupported=FOREIGN)
    body, named = with_own_names(body, serving, length="max_output_tokens", least=1)
    options, constrained = response_options(body, serving)
    conversation, places = conversation_of(body, items)
    return AnswerRequest(
        asked=conversation,
        options=options,
        spelling=partial(
            ResponseSpelling,
            asked=echoed(body, options, store=store),
            namespaces=namespaces_of(body.tools),
        ),
        keep=body.store is not False,
        stream=bool(body.stream),
        renamed={**named, **places, **constrained, **places_of(body.tools)},
    )


def conversation_of(
    body: ResponsesRequest, items: Sequence[Item]
) -> tuple[Conversation, dict[Location, Sent]]:
    """The messages, and what the client calls each. Raises: InvalidRequest where there are none."""
    if not items:
        raise InvalidRequest("'input' is required.", at=Sent("input"), code="missing_field")
    placed = messages_of(body.instructions, items)
    renamed: dict[Location, Sent] = {MESSAGES.at(index): at for index, (_, at) in enumerate(placed)}
    renamed[REASONING] = Sent("reasoning", "effort")
    return Conversation(messages=tuple(message for message, _ in placed)), renamed


def response_options(
    body: ResponsesRequest, serving: Serving
) -> tuple[Options, dict[Location, Sent]]:
    """How to answer, and what the client calls the constraint, if it isn't `text.format`.

    Raises: InvalidRequest, UnsupportedParameter naming the field.
    """
    _check_fields(body)
    constraint, renamed = _constraint(body), {}
    if (other := read_constraint(body)) is not None:
        if constraint is not None:
            raise InvalidRequest(
                f"'text.format' and '{other[1]}' both say what the answer must be; give one.",
                at=other[1],
            )
        constraint, renamed = other[0], {CONSTRAINT: other[1]}
    options = Options(
        seed=check_seed(body.seed),
        max_tokens=body.max_output_tokens,
        sampling=sampling_of(body, serving.sampling),
        stop=stops_of(body),
        include_stop=bool(body.include_stop_str_in_output),
        constraint=constraint,
        logprobs=_logprobs(body),
        reasoning=_reasoning(body),
        tools=read_tool_use(body),
    )
    return options, renamed


def _reasoning(body: ResponsesRequest) -> Reasoning:
    """How much the model shall think. Clients send an effort to models that don't think, too."""
    effort = None if body.reasoning is None else body.reasoning.effort
    if effort == "none":
        return Reasoning(enabled=False)
    return Reasoning(effort=effort, optional=True)


def _check_fields(body: ResponsesRequest) -> None:
    """Refuse by name what can't be done."""
    refuse_given(body, UNSUPPORTED_FIELDS)
    refuse_but(body, OF_CHATS, DONE_ANYWAY)
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        raise UnsupportedParameter(
            "'text.verbosity' is not supported: the model has no such mode; ask for it in the "
            "instructions.",
            at=Sent("text", "verbosity"),
        )
    if body.background and body.store is False:
        raise InvalidRequest(
            "'background' needs 'store': a response that nobody waits for must be kept.",
            at=Sent("store"),
        )


def check_includes(names: Iterable[str]) -> None:
    """Raises: InvalidRequest for what is never part of a response."""
    for index, name in enumerate(names):
        if name != LOGPROBS and name not in HARMLESS_INCLUDES:
            known = ", ".join(map(repr, (LOGPROBS, *HARMLESS_INCLUDES)))
            raise InvalidRequest(
                f"{quoted(name)!r} can't be included. It can be {known}.",
                at=Sent("include", index),
            )


def _logprobs(body: ResponsesRequest) -> int | None:
    """How many of the likeliest tokens come with each. Raises: InvalidRequest."""
    check_includes(body.include or ())
    if LOGPROBS in (body.include or ()):
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest(
            f"'top_logprobs' needs '{LOGPROBS}' in 'include'.", at=Sent("top_logprobs")
        )
    return None


def _constraint(body: ResponsesRequest) -> Constraint | None:
    """What `text.format` constrains decoding to. Raises: InvalidRequest."""
    form = None if body.text is None else body.text.format
    if form is None:
        return None
    at = Sent("text", "format")
    raw = bytes(form.schema)
    if form.type != "json_schema":
        if raw != b"null":
            raise InvalidRequest(
                f"'schema' has no effect with type '{form.type}'; for an answer by the schema the "
                "type is 'json_schema'.",
                at=at.at("type"),
            )
        return ANY_OBJECT if form.type == "json_object" else None
    for name, given in (("name", form.name), ("schema", None if raw == b"null" else raw)):
        if given is None:
            raise InvalidRequest(
                f"'text.format.{name}' is required.", at=at.at(name), code="missing_field"
            )
    return schema_constraint(raw, at.at("schema"))


# Tools

"""Bodies in Anthropic's words → what the chat service understands."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from msgspec import Raw

from maestrale.api.answering import Serving
from maestrale.api.anthropic.schemas import (
    CONTEXT_MANAGEMENT,
    NULL,
    UNSUPPORTED_FIELDS,
    CountRequest,
    Edit,
    Message,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolBody,
    ToolResultBlock,
    ToolUseBlock,
    Trigger,
)
from maestrale.api.anthropic.spelling import MessageSpelling
from maestrale.api.dialect import AnswerRequest
from maestrale.api.validation import (
    NOTHING,
    check_seed,
    decoded_part,
    not_text,
    refuse_given,
    typed_parts,
)
from maestrale.chat.options import Conversation, Options, Reasoning, schema_constraint
from maestrale.chat.tools import (
    MAX_TOOLS,
    Choice,
    check_names,
    check_tools_size,
    tool_spec,
    tool_use,
)
from maestrale.engines.base import Constraint, Sampling
from maestrale.errors import (
    InvalidRequest,
    Location,
    Sent,
    UnsupportedParameter,
    quoted,
)
from maestrale.prompt.messages import MESSAGES, ChatMessage, ToolCall
from maestrale.prompt.tools.base import ToolSpec, ToolUse

THOUGHTS = ("thinking", "redacted_thinking")  # what is redacted can't be read: it is left out
BLOCK = "content block"
T = TypeVar("T")
Placed = list[tuple[ChatMessage, Sent]]
"""Messages for the prompt, each with its place in the body."""


def read_messages(body: MessagesRequest, serving: Serving) -> AnswerRequest:
    """A message to be answered. Raises: InvalidRequest, UnsupportedParameter."""
    _check_fields(body, serving.context_length)
    placed = _placed(body)
    conversation = _conversation(placed)
    use = read_tool_use(body)
    constraint = _constraint(body)
    if conversation.continues and (constraint is not None or (use is not None and use.required)):
        raise InvalidRequest(
            "The last message is the assistant's, so the answer goes on from it: that can't be "
            "combined with a required call or an output format, which begin the answer.",
            at=Sent("messages", len(body.messages) - 1),
        )
    defaults = serving.sampling
    return AnswerRequest(
        asked=conversation,
        options=Options(
            seed=check_seed(body.seed),
            max_tokens=body.max_tokens,
            sampling=Sampling(
                temperature=defaults.temperature if body.temperature is None else body.temperature,
                top_p=defaults.top_p if body.top_p is None else body.top_p,
                top_k=max(0, defaults.top_k if body.top_k is None else body.top_k),
                min_p=defaults.min_p,
                repetition_penalty=defaults.repetition_penalty,
            ),
            stop=tuple(body.stop_sequences or ()),
            constraint=constraint,
            reasoning=read_thinking(body, body.max_tokens),
            tools=use,
        ),
        spelling=partial(MessageSpelling, shows_thoughts=not _omitted(body)),
        stream=bool(body.stream),
        renamed=places_of(placed),
    )


def read_count(
    body: CountRequest, context_length: int
) -> tuple[Conversation, Options, dict[Location, Sent]]:
    """A conversation whose tokens are to be counted, and what its client calls its messages.

    Raises: InvalidRequest, UnsupportedParameter.
    """
    _check_fields(body, context_length)
    placed = _placed(body)
    options = Options(tools=read_tool_use(body), reasoning=read_thinking(body, None))
    return _conversation(placed), options, places_of(placed)


def _check_fields(body: CountRequest, context_length: int) -> None:
    """Refuse by name what can't be done."""
    refuse_given(body, UNSUPPORTED_FIELDS)
    if body.output_config is not None and bytes(body.output_config.task_budget) not in NOTHING:
        at = Sent("output_config", "task_budget")
        raise UnsupportedParameter(
            "The model is told of no budget over several answers; 'max_tokens' bounds each.", at=at
        )
    edits = () if body.context_management is None else body.context_management.edits
    for index, raw in enumerate(edits):
        at = Sent("context_management", "edits", index)
        edit = _as(Edit, raw, at)
        if not _does_nothing(edit, context_length, at):
            raise UnsupportedParameter(
                f"'{quoted(edit.type)}' is not supported where it would do anything: "
                f"{CONTEXT_MANAGEMENT}.",
                at=at.at("type"),
            )


# The prompts' tokens from which on Anthropic's servers make these edits, if nothing else is said.
USUAL_TRIGGERS = {"clear_tool_uses_20250919": 100_000, "compact_20260112": 150_000}


def _does_nothing(edit: Edit, context_length: int, at: Sent) -> bool:
    """Whether the edit keeps all, or is for longer prompts than there are."""
    if edit.type.startswith("clear_thinking_"):
        return decoded_part(edit.keep, Any, at.at("keep")) in ("all", {"type": "all"})
    if bytes(edit.trigger) == bytes(NULL):
        return USUAL_TRIGGERS.get(edit.type, 0) >= context_length
    trigger = _as(Trigger, edit.trigger, at.at("trigger"))
    return (
        edit.type in USUAL_TRIGGERS
        and trigger.type == "input_tokens"
        and trigger.value >= context_length
    )


def read_thinking(body: CountRequest, max_tokens: int | None) -> Reasoning:
    """What is asked of the model's thoughts. Effort and `adaptive` are for the model to make
    something of; one that doesn't think answers all the same.

    Raises: InvalidRequest, UnsupportedParameter.
    """
    thinking, at = body.thinking, Sent("thinking")
    effort = None if body.output_config is None else body.output_config.effort
    if thinking is None or thinking.type == "adaptive":
        return Reasoning(effort=effort, optional=True)
    if thinking.type == "between_tools":
        raise UnsupportedParameter(
            "Thinking between tools only is not supported; 'thinking' can have the type "
            "'disabled', 'adaptive' or 'enabled'.",
            at=at.at("type"),
        )
    budget = thinking.budget_tokens
    if (budget is not None) != (thinking.type == "enabled"):
        raise InvalidRequest(
            "'budget_tokens' belongs to thinking of type 'enabled', and to no other.",
            at=at.at("budget_tokens"),
        )
    if thinking.type == "disabled":
        return Reasoning(enabled=False)
    if budget is not None and max_tokens is not None and budget >= max_tokens:
        raise InvalidRequest(
            f"'budget_tokens' ({budget}) must be less than 'max_tokens' ({max_tokens}), which "
            "counts the thought and the answer.",
            at=at.at("budget_tokens"),
        )
    return Reasoning(enabled=True, effort=effort, budget=budget)


def _omitted(body: CountRequest) -> bool:
    return body.thinking is not None and body.thinking.display == "omitted"


# Messages


def _conversation(placed: Placed) -> Conversation:
    messages = tuple(message for message, _ in placed)
    last = messages[-1]
    return Conversation(
        messages=messages, continues=last.role == "assistant" and not last.tool_calls
    )


def places_of(placed: Placed) -> dict[Location, Sent]:
    """What the client calls the messages of the prompt."""
    return {MESSAGES.at(index): at for index, (_, at) in enumerate(placed)}


def _placed(body: CountRequest) -> Placed:
    placed: Placed = []
    if body.system is not None:
        at = Sent("system")
        text = body.system if isinstance(body.system, str) else _texts(body.system, at)
        if text:
            placed.append((ChatMessage(role="system", content=text), at))
    for index, message in enumerate(body.messages):
        placed += _turns(message, Sent("messages", index))
    return placed


def _turns(message: Message, at: Sent) -> Placed:
    """A message's turns: results of calls are turns of their own, before what the user says."""
    inside = at.at("content")
    if isinstance(message.content, str):
        return [(ChatMessage(role=message.role, content=message.content), at)]
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    results: Placed = []
    for block, kind, place in typed_parts(message.content, inside, BLOCK):
        if kind == "text":
            texts.append(_as(TextBlock, block, place).text)
        elif kind == "tool_use" and message.role == "assistant":
            calls.append(_call(_as(ToolUseBlock, block, place), place))
        elif kind == "tool_result" and message.role == "user":
            results.append((_result(_as(ToolResultBlock, block, place), place), place))
        elif kind == "thinking" and message.role == "assistant":
            thoughts.append(_as(ThinkingBlock, block, place).thinking)
        elif kind == "redacted_thinking" and message.role == "assistant":
            continue
        elif kind in ("tool_use", "tool_result", *THOUGHTS):
            raise InvalidRequest(
                f"A block of type '{kind}' has no place in a message of the {message.role}.",
                at=place.at("type"),
            )
        else:
            raise not_text(kind, place)
    if results and not texts:
        return results
    turn = ChatMessage(
        role=message.role,
        content="".join(texts),
        tool_calls=tuple(calls),
        reasoning="\n\n".join(filter(None, thoughts)),
    )
    return [*results, (turn, at)]


def _call(block: ToolUseBlock, at: Sent) -> ToolCall:
    arguments = bytes(block.input)
    if not arguments.startswith(b"{"):
        raise InvalidRequest("'input' must be an object.", at=at.at("input"))
    return ToolCall(id=block.id, name=block.name, arguments=arguments.decode())


def _result(block: ToolResultBlock, at: Sent) -> ChatMessage:
    content = block.content or ""
    text = content if isinstance(content, str) else _texts(content, at.at("content"))
    if block.is_error:
        text = f"Error: {text}"
    return ChatMessage(role="tool", content=text, tool_call_id=block.tool_use_id)


def _texts(blocks: list[Raw], at: Sent) -> str:
    """The text of blocks that can be nothing else."""
    texts = []
    for block, kind, place in typed_parts(blocks, at, BLOCK):
        if kind != "text":
            raise not_text(kind, place)
        texts.append(_as(TextBlock, block, place).text)
    return "".join(texts)


def _as(type_: type[T], raw: Raw, at: Sent) -> T:
    """A part of the body as this type. Raises: InvalidRequest that names the place."""
    return decoded_part(raw, type_, at)  # type: ignore[no-any-return]


# Tools and constraints


def read_tool_use(body: CountRequest) -> ToolUse | None:
    """What the model may do with the tools; None when it may call none. Raises: InvalidRequest."""
    tools = body.tools or []
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(
            f"There are {len(tools)} tools; up to {MAX_TOOLS} are allowed.", at=Sent("tools")
        )
    check_tools_size(sum(len(bytes(tool)) for tool in tools))
    specs = check_names([_tool(index, raw) for index, raw in enumerate(tools)])
    given = body.tool_choice
    if given is None:
        return tool_use(specs, Choice(), parallel=True)
    if (given.type == "tool") != (given.name is not None):
        raise InvalidRequest(
            "'name' belongs to a tool_choice of type 'tool', and to no other.",
            at=Sent("tool_choice", "name"),
        )
    choice = Choice(
        forbidden=given.type == "none",
        required=given.type in ("any", "tool"),
        names=None if given.name is None else (given.name,),
        once=given.type == "tool",
    )
    return tool_use(specs, choice, parallel=not given.disable_parallel_tool_use)


def _tool(index: int, raw: Raw) -> ToolSpec:
    at = Sent("tools", index)
    written = decoded_part(raw, Any, at)
    kind = written.get("type") if isinstance(written, dict) else None
    if isinstance(kind, str) and kind != "custom":
        raise UnsupportedParameter(
            f"A tool of type '{quoted(kind)}' is not supported: the server runs no tools of its "
            "own; only those that the client runs.",
            at=at.at("type"),
        )
    tool = _as(ToolBody, raw, at)
    return tool_spec(
        index,
        tool.name,
        bytes(tool.input_schema),
        description=tool.description,
        strict=bool(tool.strict),
    )


def _constraint(body: MessagesRequest) -> Constraint | None:
    form = None if body.output_config is None else body.output_config.format
    if form is None:
        return None
    at = Sent("output_config", "format", "schema")
    if bytes(form.schema) == bytes(NULL):
        raise InvalidRequest("'output_config.format' needs 'schema'.", at=at)
    return schema_constraint(bytes(form.schema), at)

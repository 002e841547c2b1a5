"""The bodies of the Responses API, decoded strictly by msgspec: unknown fields are refused.

Items and their parts stay raw until items.py knows their type, so that an unknown type is refused
by its name and not for a field that the known ones lack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Raw

from maestrale.api.openai.foreign_fields import null, with_fields
from maestrale.api.openai.schemas import (
    MAX_TOP_LOGPROBS,
    Body,
    Effort,
    OtherNames,
    ShortText,
    Tools,
)

MAX_ITEMS = 8192
MAX_PARTS = 1024
MAX_METADATA = 16
LOGPROBS = "message.output_text.logprobs"

Parts = Annotated[list[Raw], Meta(max_length=MAX_PARTS)]
Status = Literal["in_progress", "completed", "incomplete"]
ItemId = Annotated[str, Meta(max_length=256)]
MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=MAX_METADATA)]
Detail = Literal["auto", "concise", "detailed"]


class TextPart(Body, kw_only=True):
    """Text in a message, said by either side."""

    type: str
    text: str
    annotations: Raw = msgspec.field(default_factory=null)
    logprobs: Raw = msgspec.field(default_factory=null)
    prompt_cache_breakpoint: Raw = msgspec.field(default_factory=null)


class RefusalPart(Body, kw_only=True):
    """What an assistant of another server said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class MessageItem(Body, kw_only=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Parts
    type: Literal["message"] = "message"
    id: ItemId | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Body, kw_only=True):
    """A call that the model made."""

    call_id: ItemId
    name: ItemId
    arguments: str
    type: Literal["function_call"]
    id: ItemId | None = None
    status: Status | None = None
    namespace: ShortText | None = None
    caller: Raw = msgspec.field(default_factory=null)
    runs_async: bool | None = msgspec.field(name="async", default=None)


class OutputItem(Body, kw_only=True):
    """What a call gave."""

    call_id: ItemId
    output: str | Parts
    type: Literal["function_call_output"]
    id: ItemId | None = None
    status: Status | None = None
    name: ShortText | None = None
    namespace: ShortText | None = None
    caller: Raw = msgspec.field(default_factory=null)


class Thought(Body, kw_only=True):
    text: str
    type: Literal["summary_text", "reasoning_text"]


class ReasoningItem(Body, kw_only=True):
    """What the model thought before it answered."""

    type: Literal["reasoning"]
    summary: Annotated[list[Thought], Meta(max_length=MAX_PARTS)] = []
    content: Annotated[list[Thought], Meta(max_length=MAX_PARTS)] | None = None
    id: ItemId | None = None
    status: Status | None = None
    encrypted_content: str | None = None


class ReferenceItem(Body, kw_only=True):
    """An item that is kept on the server, by its id."""

    id: ItemId
    type: Literal["item_reference"] | None = None


class FunctionTool(Body, kw_only=True):
    """A function that the client runs."""

    name: str
    type: Literal["function"]
    description: str | None = None
    parameters: Raw = msgspec.field(default_factory=null)
    strict: bool | None = None
    allowed_callers: Raw = msgspec.field(default_factory=null)
    defer_loading: bool | None = None
    output_schema: Raw = msgspec.field(default_factory=null)
    runs_async: bool | None = msgspec.field(name="async", default=None)


class NamespaceTool(Body, kw_only=True):
    """Functions of one subject. What is in it stays raw until its type is known."""

    name: ItemId
    tools: Tools
    type: Literal["namespace"]
    description: str | None = None


class NamedTool(Body, kw_only=True):
    """A function as `tool_choice` names it."""

    name: str
    type: Literal["function"]


class AllowedTools(Body, kw_only=True):
    """As `tool_choice`: of the tools only these may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1)]


class TextFormat(Body, kw_only=True):
    """What the text of the answer is to be; a schema belongs to the type `json_schema`."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Meta(max_length=256)] | None = None
    schema: Raw = msgspec.field(default_factory=null)
    description: str | None = None
    strict: bool | None = None


class TextConfig(Body, kw_only=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Body, kw_only=True):
    """`summary` and `generate_summary` ask for a summary; there is none beside the thought."""

    effort: Effort | None = None
    summary: Detail | None = None
    generate_summary: Detail | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: ShortText | None = None


class StreamOptions(Body, kw_only=True):
    include_obfuscation: bool | None = None


class BackgroundOptions(Body, kw_only=True):
    """There is one queue: when an answer comes depends on what waits there."""

    completion_window: Literal["soonest", "2h", "8h"] | None = None
    continuation_id: ShortText | None = None


IGNORED_FIELDS = {
    "user": "an end user's name, for the provider's records",
    "safety_identifier": "an end user's name, for the provider's abuse checks",
    "service_tier": "there is one tier",
    "prompt_cache_key": "the prefix cache finds shared beginnings by itself",
    "prompt_cache_options": "the prefix cache finds shared beginnings by itself",
    "prompt_cache_retention": "the prefix cache keeps what fits",
    "access_programs": "for the provider's records",
    "client_metadata": "what Codex says of its session, for the provider's records",
    "max_tool_calls": "counts calls of tools that the server runs, of which there are none",
    "stream_options": "padding of events; there is none",
    "background_options": "there is one queue",
    "image": "there are no images",
}
"""Change nothing here, whatever they say."""

UNSUPPORTED_FIELDS = {
    "conversation": "use 'previous_response_id', or send the items",
    "prompt": "there are no prompt templates; send 'instructions' and 'input'",
    "context_management": "use 'truncation'",
    "moderation": "there is no moderation model",
}
"""Refused, unless they are null or empty."""


_THINKING = "'reasoning.effort' says how much the model shall think"
_ONE = "a response is one answer"
_OF_COMPLETIONS = "it is for chat completions and completions"
OF_CHATS = {
    "messages": "here it is 'input'",
    "max_tokens": "here it is 'max_output_tokens'",
    "max_completion_tokens": "here it is 'max_output_tokens'",
    "response_format": "here it is 'text.format'",
    "logprobs": f"ask for '{LOGPROBS}' in 'include'",
    "n": _ONE,
    "best_of": _ONE,
    **dict.fromkeys(("reasoning_effort", "prompt_mode", "thinking", "think"), _THINKING),
    **dict.fromkeys(("enable_thinking", "include_reasoning", "chat_template_kwargs"), _THINKING),
    "thinking_token_budget": _THINKING,
    **dict.fromkeys(("logit_bias", "min_tokens", "ignore_eos", "stop_token_ids"), _OF_COMPLETIONS),
    **dict.fromkeys(("prompt_logprobs", "echo"), _OF_COMPLETIONS),
}
"""Fields of chat completions: refused, unless they are null or say what is done anyway."""

DONE_ANYWAY = {
    **dict.fromkeys(("n", "best_of"), b"1"),
    **dict.fromkeys(("logprobs", "ignore_eos", "echo"), b"false"),
    "min_tokens": b"0",
}

if TYPE_CHECKING:
    WithChatsFields = OtherNames
else:
    WithChatsFields = with_fields(OtherNames, OF_CHATS)


class ResponsesRequest(WithChatsFields, kw_only=True):
    """POST /v1/responses. Of how tokens are chosen OpenAI has `temperature` and `top_p` alone."""

    model: Annotated[str, Meta(max_length=512)] | None = None
    input: str | Annotated[list[Raw], Meta(max_length=MAX_ITEMS)] | None = None
    instructions: str | None = None
    previous_response_id: ItemId | None = None
    tools: Tools | None = None
    tool_choice: Raw = msgspec.field(default_factory=null)
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: Annotated[list[ShortText], Meta(max_length=32)] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    user: ShortText | None = None
    safety_identifier: ShortText | None = None
    service_tier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_options: Raw = msgspec.field(default_factory=null)
    prompt_cache_retention: ShortText | None = None
    access_programs: Raw = msgspec.field(default_factory=null)
    client_metadata: Raw = msgspec.field(default_factory=null)
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    stream_options: StreamOptions | None = None
    background_options: BackgroundOptions | None = None
    image: Raw = msgspec.field(default_factory=null)
    conversation: Raw = msgspec.field(default_factory=null)
    prompt: Raw = msgspec.field(default_factory=null)
    context_management: Raw = msgspec.field(default_factory=null)
    moderation: Raw = msgspec.field(default_factory=null)

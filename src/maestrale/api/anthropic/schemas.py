"""The bodies of Anthropic's Messages API, decoded strictly by msgspec: unknown fields are refused.

Content blocks stay raw until reading.py knows their type, so that an unknown type is refused by
its name and not for a field that the known ones lack.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

MAX_MESSAGES = 4096
MAX_BLOCKS = 1024
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_EDITS = 64

NULL = Raw(b"null")


def null() -> Raw:
    """A field that is not given."""
    return NULL


Short = Annotated[str, Meta(max_length=1000)]
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Blocks = Annotated[list[Raw], Meta(max_length=MAX_BLOCKS)]


class Body(Struct, kw_only=True, forbid_unknown_fields=True):
    """What every body is: strict, and without unknown fields."""


class TextBlock(Body, kw_only=True):
    text: str
    type: Literal["text"] = "text"
    cache_control: Raw = msgspec.field(default_factory=null)
    citations: Raw = msgspec.field(default_factory=null)


class ThinkingBlock(Body, kw_only=True):
    """What the assistant thought; anybody's signature is taken."""

    thinking: str
    signature: str | None = None
    type: Literal["thinking"] = "thinking"


class ToolUseBlock(Body, kw_only=True):
    """A call that the assistant made."""

    id: Short
    name: Short
    input: Raw
    type: Literal["tool_use"] = "tool_use"
    cache_control: Raw = msgspec.field(default_factory=null)
    caller: Raw = msgspec.field(default_factory=null)
    toolset_name: Short | None = None


class ToolResultBlock(Body, kw_only=True):
    """What a call gave, in a message of the user."""

    tool_use_id: Short
    content: str | Blocks | None = None
    is_error: bool | None = None
    type: Literal["tool_result"] = "tool_result"
    cache_control: Raw = msgspec.field(default_factory=null)
    toolset_name: Short | None = None


class Message(Body, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class ToolBody(Body, kw_only=True):
    """A function that the client runs."""

    name: str
    input_schema: Raw
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: Raw = msgspec.field(default_factory=null)
    allowed_callers: Raw = msgspec.field(default_factory=null)
    defer_loading: Raw = msgspec.field(default_factory=null)
    eager_input_streaming: Raw = msgspec.field(default_factory=null)
    input_examples: Raw = msgspec.field(default_factory=null)


class ToolChoice(Body, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body, kw_only=True):
    """Whether to think, for `enabled` with up to so many tokens; whether to show what is thought.

    There are no summaries: what isn't `omitted` is shown as it is.
    """

    type: Literal["disabled", "adaptive", "enabled", "between_tools"]
    budget_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    display: Literal["summarized", "omitted", "updates"] | None = None


class Format(Body, kw_only=True):
    type: Literal["json_schema"]
    schema: Raw


class OutputConfig(Body, kw_only=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None
    task_budget: Raw = msgspec.field(default_factory=null)


class ContextManagement(Body, kw_only=True):
    """How the provider is to shorten a conversation."""

    edits: Annotated[list[Raw], Meta(max_length=MAX_EDITS)] = []  # each is an Edit


class Edit(Struct, kw_only=True):
    """Of a way to shorten conversations, what says whether it would do anything."""

    type: Short
    keep: Raw = msgspec.field(default_factory=null)
    trigger: Raw = msgspec.field(default_factory=null)


class Trigger(Struct, kw_only=True):
    """From how long a prompt on an edit is made."""

    type: Short
    value: int


IGNORED_FIELDS = {
    "metadata": "a user's id, for the provider's records",
    "service_tier": "there is one tier",
    "inference_geo": "there is one place",
    "speed": "never changes the answer",
    "cache_control": "the prefix cache finds shared beginnings by itself",
    "diagnostics": "asks for the provider's own reports",
    "user_profile_id": "for the provider's records",
    "workspace_id": "for the provider's records",
    "betas": "names what is on trial; what isn't here is refused where it is asked for",
    "anthropic_beta": "as betas",
    "anthropic_version": "there is one version",
    "billing_policy": "nothing is billed",
    "fallback_credit_token": "nothing is billed",
    "fallbacks": "other models for the provider to ask when this one declines",
    "litellm_metadata": "for LiteLLM's records",
}
"""Change nothing here, whatever they say."""

IGNORED_PARTS = {
    "cache_control": IGNORED_FIELDS["cache_control"],
    "citations": "of documents, of which there are none",
    "signature": "a thought is taken from anybody",
    "caller": "who called is for the client",
    "toolset_name": "for the client",
    "allowed_callers": "the model alone calls tools",
    "defer_loading": "all tools are in the prompt from the start",
    "eager_input_streaming": "a call is streamed whole",
    "input_examples": "prompts have no place for them; the description has",
}
"""Change nothing in content blocks and tools."""

UNSUPPORTED_FIELDS = {
    "container": "the server runs no code",
    "mcp_servers": "the server calls no other server",
    "compaction": "ask the model for a summary, and send that",
    "thread": "messages are not kept; send all of them, or use /v1/responses",
}
"""Refused, unless they are null or empty."""

CONTEXT_MANAGEMENT = "a conversation is never cut without a word"
"""Why an edit is refused that would do anything."""


class CountRequest(Body, kw_only=True):
    """POST /v1/messages/count_tokens."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: Annotated[str, Meta(max_length=512)] | None = None
    system: str | Blocks | None = None
    tools: list[Raw] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    metadata: Raw = msgspec.field(default_factory=null)
    service_tier: Short | None = None
    inference_geo: Short | None = None
    speed: Short | None = None
    cache_control: Raw = msgspec.field(default_factory=null)
    diagnostics: Raw = msgspec.field(default_factory=null)
    user_profile_id: Short | None = None
    workspace_id: Short | None = None
    betas: Raw = msgspec.field(default_factory=null)
    anthropic_beta: Raw = msgspec.field(default_factory=null)
    anthropic_version: Short | None = None
    billing_policy: Raw = msgspec.field(default_factory=null)
    fallback_credit_token: Raw = msgspec.field(default_factory=null)
    fallbacks: Raw = msgspec.field(default_factory=null)
    litellm_metadata: Raw = msgspec.field(default_factory=null)
    container: Raw = msgspec.field(default_factory=null)
    mcp_servers: Raw = msgspec.field(default_factory=null)
    context_management: ContextManagement | None = None
    compaction: Raw = msgspec.field(default_factory=null)
    thread: Raw = msgspec.field(default_factory=null)


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    seed: int | None = None

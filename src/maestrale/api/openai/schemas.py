"""The request bodies: OpenAI's fields and Mistral's together, decoded strictly by msgspec.

Types are never coerced ("yes" is no boolean), unknown fields are refused by name at the first
one met, and nothing is built from a body that turns out wrong. reading.py makes of them what the
chat service understands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Raw, Struct

from maestrale.api.openai.foreign_fields import (
    CHAT_FIELDS,
    IGNORED_FIELDS,
    OPTIONS_IGNORED,
    OPTIONS_UNSUPPORTED,
    UNSUPPORTED_FIELDS,
    null,
    with_fields,
)
from maestrale.api.openai.tools import MAX_CALLS_IN_MESSAGE, CallBody
from maestrale.chat.tools import MAX_TOOLS

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_USER_CHARS = 1000
MAX_MESSAGES = 4096
MAX_CONTENT_PARTS = 1024
MAX_BIASES = 1024
MAX_CHOICES = 1024
MAX_TOKEN_IDS = 1 << 20  # of one prompt: more than any context

Probability = Annotated[float, Meta(gt=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
# Smaller ones would leave the range of 32-bit logits.
RepetitionPenalty = Annotated[float, Meta(ge=1e-6, le=10)]
# -1 is llama.cpp's word for as many as there is room for.
TokenCount = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
# llama.cpp's and Ollama's: -2 fills the context.
Length = Annotated[int, Meta(ge=-2, le=2**31 - 1)]
Context = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Window = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Choices = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=MAX_CHOICES)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = StopText | Annotated[list[StopText], Meta(max_length=MAX_STOPS)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Meta(max_length=MAX_TOKEN_IDS)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Biases = Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS = frozenset(get_args(Effort))
# -1 is vLLM's word for no bound.
Budget = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
ShortText = Annotated[str, Meta(max_length=MAX_USER_CHARS)]


class Body(Struct, kw_only=True, forbid_unknown_fields=True):
    """What every request body is: strict, and without unknown fields."""


class ContentPart(Body, kw_only=True):
    """One part of a message's content. Only text can be read; nothing is ever fetched.

    What other types carry is known, so that it is the type that is refused.
    """

    type: str
    text: str | None = None
    cache_control: Raw = msgspec.field(default_factory=null)
    prompt_cache_breakpoint: Raw = msgspec.field(default_factory=null)
    image_url: Raw = msgspec.field(default_factory=null)
    video_url: Raw = msgspec.field(default_factory=null)
    audio_url: Raw = msgspec.field(default_factory=null)
    input_audio: Raw = msgspec.field(default_factory=null)
    document_url: Raw = msgspec.field(default_factory=null)
    document_name: Raw = msgspec.field(default_factory=null)
    file: Raw = msgspec.field(default_factory=null)
    file_id: Raw = msgspec.field(default_factory=null)
    detail: Raw = msgspec.field(default_factory=null)
    refusal: Raw = msgspec.field(default_factory=null)
    reference_ids: Raw = msgspec.field(default_factory=null)
    thinking: Raw = msgspec.field(default_factory=null)
    closed: bool | None = None
    signature: Raw = msgspec.field(default_factory=null)


class ThoughtChunk(Body, kw_only=True):
    """A part of a thought, as Mistral's clients send an earlier one back."""

    text: str
    type: Literal["text"] = "text"


class Message(Body, kw_only=True):
    """One message, of either API's shape. Fields that are null in SDKs' dumps are accepted."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Meta(max_length=MAX_CONTENT_PARTS)] | None = None
    name: ShortText | None = None
    prefix: bool | None = None
    tool_calls: Annotated[list[CallBody], Meta(max_length=MAX_CALLS_IN_MESSAGE)] | None = None
    tool_call_id: ShortText | None = None
    function_call: Raw = msgspec.field(default_factory=null)
    audio: Raw = msgspec.field(default_factory=null)
    refusal: str | None = None
    annotations: Raw = msgspec.field(default_factory=null)
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: Raw = msgspec.field(default_factory=null)


Tools = Annotated[list[Raw], Meta(max_length=MAX_TOOLS)]  # each is read by tools.py
Messages = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]


class StreamOptions(Body, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class SchemaFormat(Body, kw_only=True):
    """The named schema of `response_format`."""

    name: Annotated[str, Meta(max_length=256)] | None = None
    description: str | None = None
    schema: Raw = msgspec.field(default_factory=null)
    strict: bool | None = None


class ResponseFormat(Body, kw_only=True):
    """`schema` beside the type is llama.cpp's way."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema: Raw = msgspec.field(default_factory=null)


class SamplerFields(Body, kw_only=True):
    """How tokens are chosen, in every body that asks for an answer."""

    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    seed: int | None = None
    stop: Stops | None = None


if TYPE_CHECKING:
    ForeignFields = SamplerFields
    _Options = Body
else:
    ForeignFields = with_fields(SamplerFields, {**IGNORED_FIELDS, **UNSUPPORTED_FIELDS})
    _Options = with_fields(Body, {**OPTIONS_IGNORED, **OPTIONS_UNSUPPORTED})


class OllamaOptions(_Options, kw_only=True):
    """Ollama's `options`: what others have beside the model."""

    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: Stops | None = None
    num_predict: Length | None = None
    num_ctx: Context | None = None
    repeat_penalty: RepetitionPenalty | None = None
    repeat_last_n: Window | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class StructuredOutputs(Body, kw_only=True):
    """vLLM's: one of the first five."""

    json: Raw = msgspec.field(default_factory=null)
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    disable_fallback: bool | None = None  # there is nothing to fall back to


OTHER_NAMES = {
    "repeat_penalty": "repetition_penalty",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
}


class OtherNames(ForeignFields, kw_only=True):
    """What other servers call what exists here; other_names.py and constraints.py read it."""

    repeat_penalty: RepetitionPenalty | None = None
    repeat_last_n: Window | None = None
    n_predict: Length | None = None
    num_predict: Length | None = None
    num_ctx: Context | None = None
    options: OllamaOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Raw = msgspec.field(default_factory=null)
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    grammar: str | None = None
    json_schema: Raw = msgspec.field(default_factory=null)
    format: Raw = msgspec.field(default_factory=null)
    include_stop_str_in_output: bool | None = None


class SamplingFields(OtherNames, kw_only=True):
    """What chat and plain completions have in common."""

    model: Annotated[str, Meta(max_length=512)] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Biases | None = None
    random_seed: int | None = None
    max_tokens: TokenCount | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None

    user: ShortText | None = None
    metadata: Raw = msgspec.field(default_factory=null)
    store: bool | None = None
    service_tier: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_options: Raw = msgspec.field(default_factory=null)
    prompt_cache_retention: ShortText | None = None
    prediction: Raw = msgspec.field(default_factory=null)

    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    return_token_ids: bool | None = None


class ReasoningBody(Body, kw_only=True):
    """OpenRouter's `reasoning`."""

    effort: Effort | None = None
    max_tokens: Budget | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class ThinkingBody(Body, kw_only=True):
    """`thinking`, as Anthropic's, DeepSeek's and Z.ai's APIs have it."""

    type: Literal["enabled", "disabled", "adaptive", "auto"]
    budget_tokens: Budget | None = None


class ChatRequest(SamplingFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    safe_prompt: bool | None = None
    reasoning_effort: Effort | None = None
    prompt_mode: Literal["reasoning"] | None = None
    reasoning: ReasoningBody | None = None
    thinking: ThinkingBody | None = None
    thinking_token_budget: Budget | None = None
    enable_thinking: bool | None = None
    think: bool | Effort | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: Raw = msgspec.field(default_factory=null)
    add_special_tokens: bool | None = None
    echo: bool | None = None
    tools: Tools | None = None
    tool_choice: Raw = msgspec.field(default_factory=null)
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None


if TYPE_CHECKING:
    WithChatFields = SamplingFields
else:
    WithChatFields = with_fields(SamplingFields, CHAT_FIELDS)


class CompletionRequest(WithChatFields, kw_only=True):
    """POST /v1/completions: a prompt as text or token ids, or a list of either."""

    prompt: str | Annotated[list[str | TokenId | TokenIds], Meta(max_length=MAX_TOKEN_IDS)]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    suffix: str | None = None


class FimRequest(WithChatFields, kw_only=True):
    """POST /v1/fim/completions, as Mistral's."""

    prompt: str
    suffix: str | None = None


class TokenizeRequest(Body, kw_only=True):
    """POST /tokenize, as vLLM's: a prompt or messages."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Raw = msgspec.field(default_factory=null)
    chat_template_kwargs: Raw = msgspec.field(default_factory=null)
    mm_processor_kwargs: Raw = msgspec.field(default_factory=null)
    model: Annotated[str, Meta(max_length=512)] | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body, kw_only=True):
    """POST /detokenize, as vLLM's."""

    model: Annotated[str, Meta(max_length=512)] | None = None
    tokens: TokenIds

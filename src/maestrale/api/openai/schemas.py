"""The request bodies: OpenAI's fields and Mistral's together, decoded strictly by msgspec.

Types are never coerced ("yes" is no boolean), unknown fields are refused by name at the first
one met, and nothing is built from a body that turns out wrong. Each request turns itself into
what chat/service.py understands: `ChatMessage`s and `Options`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from maestrale.api.openai.foreign_fields import (
    IGNORED_FIELDS,
    NULL,
    UNSUPPORTED_FIELDS,
    is_neutral,
    null,
    refuse_unsupported,
    with_fields,
)
from maestrale.api.openai.tools import (
    MAX_CALLS_IN_MESSAGE,
    MAX_TOOLS,
    CallBody,
    past_calls,
    tool_use,
)
from maestrale.chat.answer import Options
from maestrale.chat.service import ANY_OBJECT
from maestrale.engines.base import Constraint, Sampling
from maestrale.errors import InvalidRequest, UnsupportedParameter
from maestrale.models.sampling_defaults import NEUTRAL, SamplingDefaults
from maestrale.prompt.messages import ChatMessage

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_SCHEMA_BYTES = 64 * 1024
MAX_IGNORED_BYTES = 64 * 1024
MAX_USER_CHARS = 1000
MAX_MESSAGES = 4096
MAX_CONTENT_PARTS = 1024
MAX_BIASES = 1024
DEFAULT_MAX_TOKENS = 16  # of a plain completion, as OpenAI's and vLLM's
MAX_TOKEN_IDS = 1 << 20  # of one prompt: more than any context

SAFE_PROMPT = (
    "Always assist with care, respect, and truth. Respond with utmost utility yet securely. "
    "Avoid harmful, unethical, prejudiced, or negative content. "
    "Ensure replies promote fairness and positivity."
)

# Of a part of a message's content that is text; the caches need no marks.
TEXT_PART_FIELDS = {"type", "text", "cache_control", "prompt_cache_breakpoint"}

_CANONICAL_ID = re.compile(r"0|[1-9][0-9]{0,8}")


Probability = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
# Smaller ones would leave the range of 32-bit logits.
RepetitionPenalty = Annotated[float, Meta(ge=1e-6, le=10)]
# -1 is llama.cpp's word for as many as there is room for.
TokenCount = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = StopText | Annotated[list[StopText], Meta(max_length=MAX_STOPS)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Meta(max_length=MAX_TOKEN_IDS)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Biases = Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)]
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
    reasoning_content: Raw = msgspec.field(default_factory=null)
    reasoning: Raw = msgspec.field(default_factory=null)


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


if TYPE_CHECKING:
    ForeignFields = Body
else:
    ForeignFields = with_fields(Body, {**IGNORED_FIELDS, **UNSUPPORTED_FIELDS})


class SamplingFields(ForeignFields, kw_only=True):
    """What chat and plain completions have in common."""

    model: Annotated[str, Meta(max_length=512)] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: Biases | None = None
    seed: int | None = None
    random_seed: int | None = None
    max_tokens: TokenCount | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop: Stops | None = None
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

    def check_fields(self) -> None:
        """Refuse what can't be done, and what is too large to be ignored in good faith."""
        refuse_unsupported(self)
        for name in IGNORED_FIELDS:
            value = getattr(self, name, None)
            if isinstance(value, Raw) and len(bytes(value)) > MAX_IGNORED_BYTES:
                raise InvalidRequest(
                    f"'{name}' is larger than {MAX_IGNORED_BYTES} bytes.", param=name
                )

    def options(self, max_n: int, defaults: SamplingDefaults, **more: Any) -> Options:
        """What chat/service.py needs to know. `more` is what only one of the two routes has.

        `defaults` are the model's, for what the request leaves open.

        Raises: InvalidRequest naming the field.
        """
        n = self.n or 1
        if n > max_n:
            raise InvalidRequest(f"'n' is {n}; this server allows up to {max_n}.", param="n")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "'stream_options' is only for requests with 'stream': true.",
                param="stream_options",
            )
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest(
                "'prompt_logprobs' is not for streams: leave out 'stream'.", param="prompt_logprobs"
            )
        return Options(
            n=n,
            seed=self.chosen_seed(),
            min_tokens=self.min_tokens or 0,
            sampling=Sampling(
                temperature=_or(self.temperature, defaults.temperature),
                top_p=_or(self.top_p, defaults.top_p),
                top_k=max(
                    0, defaults.top_k if self.top_k is None else self.top_k
                ),  # vLLM's -1 is off, too
                min_p=_or(self.min_p, defaults.min_p),
                presence_penalty=_or(self.presence_penalty, 0.0),
                frequency_penalty=_or(self.frequency_penalty, 0.0),
                repetition_penalty=_or(self.repetition_penalty, defaults.repetition_penalty),
                logit_bias=self.chosen_bias(),
            ),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            constraint=self.constraint(),
            prompt_logprobs=self.prompt_logprobs,
            **more,
        )

    def chosen_seed(self) -> int | None:
        """`seed` (OpenAI) or `random_seed` (Mistral), any signed or unsigned 64-bit integer."""
        for name in ("seed", "random_seed"):
            value = getattr(self, name)
            if value is not None and not -(1 << 63) <= value < 1 << 64:
                raise InvalidRequest(f"'{name}' must fit in 64 bits.", param=name)
        return _same(self.seed, "seed", self.random_seed, "random_seed")

    def chosen_bias(self) -> tuple[tuple[int, float], ...]:
        pairs = []
        for key, bias in (self.logit_bias or {}).items():
            if not _CANONICAL_ID.fullmatch(key):  # "01" would be a second name of "1"
                raise InvalidRequest(
                    f"'logit_bias' maps token ids to numbers; {key[:40]!r} is no token id.",
                    param="logit_bias",
                )
            pairs.append((int(key), bias))
        return tuple(sorted(pairs))

    def constraint(self) -> Constraint | None:
        """What `response_format` constrains decoding to. Raises: InvalidRequest."""
        form = self.response_format
        if form is None:
            return None
        if form.json_schema is not None and form.type != "json_schema":
            raise InvalidRequest(
                f"'json_schema' has no effect with type '{form.type}'; for an answer by the "
                "schema the type is 'json_schema'.",
                param="response_format.type",
            )
        raw, param = bytes(form.schema), "response_format.schema"
        if raw != b"null":
            if form.type == "text" or form.json_schema is not None:
                raise InvalidRequest(
                    "'schema' is for the type 'json_object', or 'json_schema' without another.",
                    param=param,
                )
        elif form.type == "text":
            return None
        elif form.type == "json_object":
            return ANY_OBJECT
        elif form.json_schema is None:
            raise InvalidRequest(
                "'response_format' needs 'json_schema'.", param="response_format.json_schema"
            )
        else:
            raw, param = bytes(form.json_schema.schema), "response_format.json_schema.schema"
        if raw == b"null":
            raise InvalidRequest("'response_format.json_schema' needs 'schema'.", param=param)
        if len(raw) > MAX_SCHEMA_BYTES:
            raise InvalidRequest(
                f"The schema has {len(raw)} bytes; up to {MAX_SCHEMA_BYTES} are allowed.",
                param=param,
            )
        try:
            schema = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"The schema is not valid JSON: {error}", param=param) from error
        if not isinstance(schema, dict):
            raise InvalidRequest("A JSON schema must be an object.", param=param)
        return Constraint("json_schema", raw.decode())


class ChatRequest(SamplingFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    safe_prompt: bool | None = None
    enable_thinking: bool | None = None
    add_special_tokens: bool | None = None
    echo: bool | None = None
    tools: Tools | None = None
    tool_choice: Raw = msgspec.field(default_factory=null)
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None

    def chat_options(self, max_n: int, defaults: SamplingDefaults = NEUTRAL) -> Options:
        """Raises: InvalidRequest, UnsupportedParameter."""
        self.check_fields()
        tools = tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)
        for name in ("add_special_tokens", "echo"):
            if getattr(self, name):
                raise UnsupportedParameter(
                    f"'{name}' is not supported: the chat template makes the whole prompt.",
                    param=name,
                )
        if self.modalities not in (None, ["text"]):
            raise UnsupportedParameter(
                "'modalities' is not supported: the model answers with text only.",
                param="modalities",
            )
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        max_tokens = _same(
            self.max_tokens, "max_tokens", self.max_completion_tokens, "max_completion_tokens"
        )
        given = "max_tokens" if self.max_tokens is not None else "max_completion_tokens"
        if max_tokens == 0:
            raise InvalidRequest(f"'{given}' must be at least 1.", param=given)
        options = self.options(
            max_n,
            defaults,
            max_tokens=None if max_tokens == -1 else max_tokens,
            max_tokens_param=given,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            tools=tools,
            template_variables=self.template_variables(),
        )
        if tools is not None and tools.required and self.has_prefix():
            raise InvalidRequest(
                "'prefix' can't be combined with a required tool call: the answer is the call.",
                param=f"messages[{len(self.messages) - 1}].prefix",
            )
        if options.constraint is not None and self.has_prefix():
            raise InvalidRequest(
                "'prefix' can't be combined with 'response_format': "
                "the document begins with the answer.",
                param=f"messages[{len(self.messages) - 1}].prefix",
            )
        return options

    def template_variables(self) -> tuple[tuple[str, bool], ...]:
        """What the chat template is told besides; `check_fields` has looked at it."""
        told = {"enable_thinking": self.enable_thinking}
        raw = getattr(self, "chat_template_kwargs", NULL)
        told |= msgspec.json.decode(raw) or {}
        return tuple((name, value) for name, value in told.items() if value is not None)

    def has_prefix(self) -> bool:
        """Whether the answer goes on from the last message."""
        return bool(self.messages[-1].prefix)

    def chat_messages(self) -> list[ChatMessage]:
        """The conversation as plain text, `safe_prompt` and all.

        Raises: InvalidRequest, UnsupportedParameter naming the message.
        """
        last = len(self.messages) - 1
        messages = [
            _plain(message, f"messages[{index}]", is_last=index == last)
            for index, message in enumerate(self.messages)
        ]
        if self.safe_prompt:
            if messages[0].role == "system":
                text = f"{SAFE_PROMPT}\n\n{messages[0].content}"
                messages[0] = ChatMessage(role="system", content=text)
            else:
                messages.insert(0, ChatMessage(role="system", content=SAFE_PROMPT))
        return messages


class CompletionRequest(SamplingFields, kw_only=True):
    """POST /v1/completions: a prompt as text or token ids, or a list of either."""

    prompt: str | Annotated[list[str | TokenId | TokenIds], Meta(max_length=MAX_TOKEN_IDS)]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    def completion_options(self, max_n: int, defaults: SamplingDefaults = NEUTRAL) -> Options:
        """Raises: InvalidRequest, UnsupportedParameter.

        With `best_of` the options ask for so many choices, of which the route gives the best `n`.
        """
        self.check_fields()
        max_tokens = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        logprobs = self.logprobs
        if self.chooses and logprobs is None:
            logprobs = 0  # by these the best are found
        options = self.options(
            max_n,
            defaults,
            max_tokens=None if max_tokens == -1 else max_tokens,
            logprobs=logprobs,
            echo=bool(self.echo),
            add_special_tokens=self.add_special_tokens is not False,
        )
        if self.chooses:
            if self.best_of < options.n:  # type: ignore[operator]
                raise InvalidRequest("'best_of' must be at least 'n'.", param="best_of")
            if self.stream:
                raise InvalidRequest(
                    "'best_of' is not for streams: the best is known at the end.", param="best_of"
                )
            options = msgspec.structs.replace(options, n=self.best_of)
        choices = options.n * len(self.prompts())
        if choices > max_n:
            given = "best_of" if self.chooses else "n"
            raise InvalidRequest(
                f"'prompt' and '{given}' ask for {choices} answers; this server allows up to "
                f"{max_n}.",
                param="prompt" if len(self.prompts()) > 1 else given,
            )
        return options

    @property
    def chooses(self) -> bool:
        """Whether more answers are generated than are given."""
        return self.best_of is not None and self.best_of != (self.n or 1)

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one. Raises: InvalidRequest when the list is mixed or empty."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise InvalidRequest("'prompt' is an empty list.", param="prompt")
        kinds = {type(item) for item in prompt}
        if len(kinds) > 1:
            raise InvalidRequest(
                "'prompt' must be one text, texts, token ids, or lists of token ids; not a mix.",
                param="prompt",
            )
        return [prompt] if kinds == {int} else prompt  # type: ignore[list-item, return-value]


class TokenizeRequest(Body, kw_only=True):
    """POST /tokenize, as vLLM's: a prompt or messages."""

    add_generation_prompt: Raw = msgspec.field(default_factory=null)
    continue_final_message: Raw = msgspec.field(default_factory=null)
    chat_template: Raw = msgspec.field(default_factory=null)
    chat_template_kwargs: Raw = msgspec.field(default_factory=null)
    mm_processor_kwargs: Raw = msgspec.field(default_factory=null)
    model: Annotated[str, Meta(max_length=512)] | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    def check_fields(self) -> None:
        """Raises: UnsupportedParameter."""
        refuse_unsupported(self)


class DetokenizeRequest(Body, kw_only=True):
    """POST /detokenize, as vLLM's."""

    model: Annotated[str, Meta(max_length=512)] | None = None
    tokens: TokenIds


def is_given(value: object) -> bool:
    """Whether a field that can't be served asks for anything: null, false and [] do not."""
    return not is_neutral("", value) if isinstance(value, Raw) else bool(value)


def plain_messages(messages: list[Message]) -> list[ChatMessage]:
    """Messages as plain text, for /tokenize. Raises: as `ChatRequest.chat_messages`."""
    return ChatRequest(messages=messages).chat_messages()


def _plain(message: Message, param: str, *, is_last: bool) -> ChatMessage:
    for name in ("function_call", "audio"):
        if is_given(getattr(message, name)):
            raise UnsupportedParameter(
                f"'{name}' in a message is not supported.", param=f"{param}.{name}"
            )
    calls = past_calls(message.tool_calls)
    if calls and message.role != "assistant":
        raise InvalidRequest(
            "'tool_calls' are for messages of the assistant.", param=f"{param}.tool_calls"
        )
    if message.prefix and not (is_last and message.role == "assistant"):
        raise InvalidRequest(
            "'prefix' is for the last message, and only if it is the assistant's.",
            param=f"{param}.prefix",
        )
    if message.content is None and message.role not in ("assistant", "tool"):
        raise InvalidRequest("'content' is required.", param=f"{param}.content")
    role = "system" if message.role == "developer" else message.role
    return ChatMessage(
        role=role,
        content=None if message.content is None else _text(message.content, param),
        name=message.name if message.role == "tool" else None,
        tool_calls=calls,
        tool_call_id=message.tool_call_id if message.role == "tool" else None,
    )


def _text(content: str | list[ContentPart], param: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if part.type not in ("text", "input_text"):
            raise UnsupportedParameter(
                f"Content of type {part.type[:40]!r} is not supported: the model reads text only, "
                "and this server never fetches anything.",
                param=f"{param}.content[{index}].type",
            )
        if part.text is None:
            raise InvalidRequest("'text' is required.", param=f"{param}.content[{index}].text")
        for name in part.__struct_fields__:
            if name not in TEXT_PART_FIELDS and is_given(getattr(part, name)):
                raise InvalidRequest(
                    f"'{name}' is not a field of text.",
                    param=f"{param}.content[{index}].{name}",
                    code="unknown_field",
                )
        texts.append(part.text)
    return "".join(texts)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _same(first: int | None, first_name: str, second: int | None, second_name: str) -> int | None:
    """Two names of one setting: either may be given, both only if equal."""
    if first is not None and second is not None and first != second:
        raise InvalidRequest(
            f"'{first_name}' ({first}) and '{second_name}' ({second}) are two names of the same "
            "setting, and differ.",
            param=second_name,
        )
    return second if first is None else first

"""The request bodies: OpenAI's fields and Mistral's together, decoded strictly by msgspec.

Types are never coerced ("yes" is no boolean), unknown fields are refused by name at the first
one met, and nothing is built from a body that turns out wrong. Each request turns itself into
what chat.py understands: `ChatMessage`s and `Options`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from maestrale.answer import Options
from maestrale.api.tools import MAX_CALLS_IN_MESSAGE, MAX_TOOLS, CallBody, past_calls, tool_use
from maestrale.chat import ANY_OBJECT
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
MAX_TOKEN_IDS = 1 << 20  # of one prompt: more than any context

SAFE_PROMPT = (
    "Always assist with care, respect, and truth. Respond with utmost utility yet securely. "
    "Avoid harmful, unethical, prejudiced, or negative content. "
    "Ensure replies promote fairness and positivity."
)

# Fields that clients send and that change nothing here: accepted, and listed in the docs.
IGNORED_FIELDS = {
    "user": "an end user's name, for the provider's records",
    "metadata": "labels for the provider's records",
    "store": "whether the provider keeps the answer; nothing is kept here",
    "service_tier": "there is one tier",
    "safety_identifier": "an end user's name, for the provider's abuse checks",
    "prompt_cache_key": "the prefix cache finds shared beginnings by itself",
    "prompt_cache_options": "the prefix cache finds shared beginnings by itself",
    "prompt_cache_retention": "the prefix cache keeps what fits",
    "prediction": "a hint for speed that never changes the answer",
}

# Known fields that would change the answer in a way that can't be done here: refused.
UNSUPPORTED_FIELDS = {
    "functions": "use a model that knows tools, and 'tools'",
    "function_call": "use a model that knows tools, and 'tools'",
    "audio": "the model answers with text only",
    "web_search_options": "there is no web search",
    "moderation": "there is no moderation model",
    "guardrails": "there are no guardrails",
    "reasoning_effort": "the model has no reasoning mode",
    "prompt_mode": "the model has no reasoning mode",
    "verbosity": "the model has no such mode; ask for it in the prompt",
    "prompt_logprobs": "log-probabilities are given for generated tokens only",
    "top_prompt_logprobs": "log-probabilities are given for generated tokens only",
    "chat_template": "a template from a request would be code from a stranger; "
    "start the server with --chat-template",
    "chat_template_kwargs": "a request can't reach into the template; "
    "start the server with --chat-template",
    "best_of": "ask for 'n' and choose",
    "echo": "the prompt is not repeated in the answer",
    "suffix": "the model can't fill in the middle",
}

# What some of them say when they ask for what is done anyway: accepted.
NEUTRAL_VALUES = {
    "suffix": b'""',
    "reasoning_effort": b'"none"',
    "verbosity": b'"medium"',
    "function_call": b'"none"',
    "chat_template_kwargs": b"{}",
}

# Of a part of a message's content that is text; the caches need no marks.
TEXT_PART_FIELDS = {"type", "text", "cache_control", "prompt_cache_breakpoint"}

NULL = Raw(b"null")
_CANONICAL_ID = re.compile(r"0|[1-9][0-9]{0,8}")


def _null() -> Raw:
    return NULL


Probability = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
# Smaller ones would leave the range of 32-bit logits.
RepetitionPenalty = Annotated[float, Meta(ge=1e-6, le=10)]
TokenCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]
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
    cache_control: Raw = msgspec.field(default_factory=_null)
    prompt_cache_breakpoint: Raw = msgspec.field(default_factory=_null)
    image_url: Raw = msgspec.field(default_factory=_null)
    video_url: Raw = msgspec.field(default_factory=_null)
    audio_url: Raw = msgspec.field(default_factory=_null)
    input_audio: Raw = msgspec.field(default_factory=_null)
    document_url: Raw = msgspec.field(default_factory=_null)
    document_name: Raw = msgspec.field(default_factory=_null)
    file: Raw = msgspec.field(default_factory=_null)
    file_id: Raw = msgspec.field(default_factory=_null)
    detail: Raw = msgspec.field(default_factory=_null)
    refusal: Raw = msgspec.field(default_factory=_null)
    reference_ids: Raw = msgspec.field(default_factory=_null)
    thinking: Raw = msgspec.field(default_factory=_null)


class Message(Body, kw_only=True):
    """One message, of either API's shape. Fields that are null in SDKs' dumps are accepted."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Meta(max_length=MAX_CONTENT_PARTS)] | None = None
    name: ShortText | None = None
    prefix: bool | None = None
    tool_calls: Annotated[list[CallBody], Meta(max_length=MAX_CALLS_IN_MESSAGE)] | None = None
    tool_call_id: ShortText | None = None
    function_call: Raw = msgspec.field(default_factory=_null)
    audio: Raw = msgspec.field(default_factory=_null)
    refusal: str | None = None
    annotations: Raw = msgspec.field(default_factory=_null)
    reasoning_content: Raw = msgspec.field(default_factory=_null)


Tools = Annotated[list[Raw], Meta(max_length=MAX_TOOLS)]  # each is read by tools.py
Messages = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]


class StreamOptions(Body, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SchemaFormat(Body, kw_only=True):
    """The named schema of `response_format`."""

    name: Annotated[str, Meta(max_length=256)] | None = None
    description: str | None = None
    schema: Raw = msgspec.field(default_factory=_null)
    strict: bool | None = None


class ResponseFormat(Body, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class SamplingFields(Body, kw_only=True):
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
    metadata: Raw = msgspec.field(default_factory=_null)
    store: bool | None = None
    service_tier: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_options: Raw = msgspec.field(default_factory=_null)
    prompt_cache_retention: ShortText | None = None
    prediction: Raw = msgspec.field(default_factory=_null)

    functions: Raw = msgspec.field(default_factory=_null)
    function_call: Raw = msgspec.field(default_factory=_null)
    audio: Raw = msgspec.field(default_factory=_null)
    web_search_options: Raw = msgspec.field(default_factory=_null)
    moderation: Raw = msgspec.field(default_factory=_null)
    guardrails: Raw = msgspec.field(default_factory=_null)
    reasoning_effort: Raw = msgspec.field(default_factory=_null)
    prompt_mode: Raw = msgspec.field(default_factory=_null)
    verbosity: Raw = msgspec.field(default_factory=_null)
    prompt_logprobs: Raw = msgspec.field(default_factory=_null)
    top_prompt_logprobs: Raw = msgspec.field(default_factory=_null)
    chat_template: Raw = msgspec.field(default_factory=_null)
    chat_template_kwargs: Raw = msgspec.field(default_factory=_null)

    def check_fields(self) -> None:
        """Refuse what can't be done, and what is too large to be ignored in good faith."""
        for name, reason in UNSUPPORTED_FIELDS.items():
            value = getattr(self, name, NULL)
            if is_given(value) and not self._is_neutral(name, value):
                raise UnsupportedParameter(f"'{name}' is not supported: {reason}.", param=name)
        for name in IGNORED_FIELDS:
            value = getattr(self, name, None)
            if isinstance(value, Raw) and len(bytes(value)) > MAX_IGNORED_BYTES:
                raise InvalidRequest(
                    f"'{name}' is larger than {MAX_IGNORED_BYTES} bytes.", param=name
                )

    def _is_neutral(self, name: str, value: Raw) -> bool:
        if name == "best_of":
            return bytes(value) == b"%d" % (self.n or 1)  # the best `n` of `n` are all of them
        return bytes(value) == NEUTRAL_VALUES.get(name)

    def options(self, max_n: int, defaults: SamplingDefaults, **more: Any) -> Options:
        """What chat.py needs to know. `more` is what only one of the two routes has.

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
        more.setdefault("max_tokens", self.max_tokens)
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
        if form.type == "text":
            return None
        if form.type == "json_object":
            return ANY_OBJECT
        param = "response_format.json_schema"
        if form.json_schema is None:
            raise InvalidRequest("'response_format' needs 'json_schema'.", param=param)
        raw = bytes(form.json_schema.schema)
        param += ".schema"
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
    tools: Tools | None = None
    tool_choice: Raw = msgspec.field(default_factory=_null)
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None

    def chat_options(self, max_n: int, defaults: SamplingDefaults = NEUTRAL) -> Options:
        """Raises: InvalidRequest, UnsupportedParameter."""
        self.check_fields()
        tools = tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)
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
        options = self.options(
            max_n,
            defaults,
            max_tokens=max_tokens,
            max_tokens_param=given,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            tools=tools,
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
    best_of: Raw = msgspec.field(default_factory=_null)
    echo: Raw = msgspec.field(default_factory=_null)
    suffix: Raw = msgspec.field(default_factory=_null)

    def completion_options(self, max_n: int, defaults: SamplingDefaults = NEUTRAL) -> Options:
        """Raises: InvalidRequest, UnsupportedParameter."""
        self.check_fields()
        options = self.options(max_n, defaults, logprobs=self.logprobs)
        choices = options.n * len(self.prompts())
        if choices > max_n:
            raise InvalidRequest(
                f"'prompt' and 'n' ask for {choices} answers; this server allows up to {max_n}.",
                param="prompt",
            )
        return options

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


def is_given(value: object) -> bool:
    """Whether a field that can't be served asks for anything: null, false and [] do not."""
    return bytes(value) not in (b"null", b"false", b"[]") if isinstance(value, Raw) else bool(value)


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
        content=_text(message.content or "", param),
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

"""Bodies in OpenAI's and Mistral's words → what the chat service understands.

What contradicts itself, or asks for what can't be done, is refused by name before anything runs.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import msgspec
from msgspec import Raw

from maestrale.api.answering import Serving
from maestrale.api.dialect import AnswerRequest
from maestrale.api.openai.constraints import read_constraint
from maestrale.api.openai.foreign_fields import CHAT_FIELDS, check_foreign, is_neutral
from maestrale.api.openai.other_names import with_own_names
from maestrale.api.openai.reasoning import read_reasoning
from maestrale.api.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    ContentPart,
    Message,
    SamplerFields,
    SamplingFields,
    ThoughtChunk,
    TokenizeRequest,
)
from maestrale.api.openai.spelling import ChatSpelling, CompletionSpelling
from maestrale.api.openai.tools import past_calls, read_tool_use
from maestrale.api.validation import check_seed
from maestrale.chat.options import CONSTRAINT, Conversation, Options, Prompts
from maestrale.engines.base import Sampling
from maestrale.errors import InvalidRequest, Location, Sent, UnsupportedParameter
from maestrale.models.sampling_defaults import SamplingDefaults
from maestrale.prompt.messages import ChatMessage

DEFAULT_MAX_TOKENS = 16  # of a plain completion, as OpenAI's and vLLM's

SAFE_PROMPT = (
    "Always assist with care, respect, and truth. Respond with utmost utility yet securely. "
    "Avoid harmful, unethical, prejudiced, or negative content. "
    "Ensure replies promote fairness and positivity."
)

# Of a part of a message's content that is text; the caches need no marks.
TEXT_PART_FIELDS = {"type", "text", "cache_control", "prompt_cache_breakpoint"}

_CANONICAL_ID = re.compile(r"0|[1-9][0-9]{0,8}")


def read_chat(body: ChatRequest, serving: Serving) -> AnswerRequest:
    """A chat completion. Raises: InvalidRequest, UnsupportedParameter."""
    check_foreign(body)
    body, named = with_own_names(body, serving, least=1)
    wish = read_reasoning(body)
    options, constrained = chat_options(body, serving)
    renamed = {**named, **wish.renamed, **constrained}
    if body.max_tokens is None:
        renamed[Location("max_tokens")] = Sent("max_completion_tokens")
    return AnswerRequest(
        options=msgspec.structs.replace(
            options, reasoning=wish.reasoning, template_variables=wish.variables
        ),
        asked=read_conversation(body),
        spelling=partial(
            ChatSpelling,
            stream_options=body.stream_options,
            shows_thoughts=wish.shown,
            as_chunks=wish.as_chunks,
        ),
        keep=body.store is not False,
        stream=bool(body.stream),
        renamed=renamed,
    )


def read_conversation(body: ChatRequest) -> Conversation:
    """The messages as plain text, `safe_prompt` and all.

    Raises: InvalidRequest, UnsupportedParameter naming the message.
    """
    messages = plain_messages(body.messages)
    if body.safe_prompt:
        if messages[0].role == "system":
            text = f"{SAFE_PROMPT}\n\n{messages[0].content}"
            messages = (ChatMessage(role="system", content=text), *messages[1:])
        else:
            messages = (ChatMessage(role="system", content=SAFE_PROMPT), *messages)
    return Conversation(messages=messages, continues=has_prefix(body))


def has_prefix(body: ChatRequest | TokenizeRequest) -> bool:
    """Whether the answer goes on from the last message."""
    last = bool(body.messages and body.messages[-1].prefix)
    return last or bool(body.continue_final_message)


def check_turn(body: ChatRequest | TokenizeRequest) -> None:
    """vLLM's words for how a prompt ends. Raises: InvalidRequest, UnsupportedParameter."""
    last = body.messages[-1] if body.messages else None
    if body.continue_final_message:
        at = Sent("continue_final_message")
        if body.add_generation_prompt:
            raise InvalidRequest(
                "'continue_final_message' and 'add_generation_prompt' exclude each other: the "
                "answer either goes on from the last message, or begins a turn.",
                at=at,
            )
        if last is None or last.role != "assistant":
            raise InvalidRequest(
                "'continue_final_message' needs a last message of the assistant.", at=at
            )
    elif body.add_generation_prompt is False and not (last is not None and last.prefix):
        raise UnsupportedParameter(
            "'add_generation_prompt' is not supported as false: an answer always begins a turn; "
            "for one that goes on from the last message there is 'continue_final_message'.",
            at=Sent("add_generation_prompt"),
        )


def chat_options(body: ChatRequest, serving: Serving) -> tuple[Options, dict[Location, Sent]]:
    """How to answer, and what the client calls the constraint.

    Raises: InvalidRequest, UnsupportedParameter.
    """
    check_turn(body)
    tools = read_tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)
    for name in ("add_special_tokens", "echo"):
        if getattr(body, name):
            raise UnsupportedParameter(
                f"'{name}' is not supported: the chat template makes the whole prompt.",
                at=Sent(name),
            )
    if body.modalities not in (None, ["text"]):
        raise UnsupportedParameter(
            "'modalities' is not supported: the model answers with text only.",
            at=Sent("modalities"),
        )
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", at=Sent("top_logprobs"))
    max_tokens = _same(
        body.max_tokens, "max_tokens", body.max_completion_tokens, "max_completion_tokens"
    )
    given = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
    if max_tokens == 0:
        raise InvalidRequest(f"'{given}' must be at least 1.", at=Sent(given))
    options, constrained = sampling_options(
        body,
        serving,
        max_tokens=None if max_tokens == -1 else max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        tools=tools,
    )
    by_message = bool(body.messages[-1].prefix)
    last = Sent("messages", len(body.messages) - 1, "prefix")
    prefix_at = last if by_message else Sent("continue_final_message")
    if tools is not None and tools.required and has_prefix(body):
        raise InvalidRequest(
            f"'{prefix_at[-1]}' can't be combined with a required tool call: the answer is the "
            "call.",
            at=prefix_at,
        )
    if options.constraint is not None and has_prefix(body):
        raise InvalidRequest(
            f"'{prefix_at[-1]}' can't be combined with '{constrained[CONSTRAINT]}': "
            "the document begins with the answer.",
            at=prefix_at,
        )
    return options, constrained


def read_completion(body: CompletionRequest, serving: Serving) -> AnswerRequest:
    """A plain completion. Raises: InvalidRequest, UnsupportedParameter.

    With `best_of` so many answers are asked for, of which the best `n` are spelled.
    """
    check_foreign(body)
    check_foreign(body, unsupported=CHAT_FIELDS)
    body, renamed = with_own_names(body, serving)
    if body.suffix and body.echo:
        raise InvalidRequest(
            "'echo' can't be combined with 'suffix': the answer stands between the two texts.",
            at=Sent("echo"),
        )
    chooses = body.best_of is not None and body.best_of != (body.n or 1)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    logprobs = body.logprobs
    if chooses and logprobs is None:
        logprobs = 0  # by these the best are found
    options, constrained = sampling_options(
        body,
        serving,
        max_tokens=None if max_tokens == -1 else max_tokens,
        logprobs=logprobs,
        echo=bool(body.echo),
        add_special_tokens=body.add_special_tokens is not False,
    )
    if chooses:
        options = msgspec.structs.replace(options, n=_best_of(body, options.n))
    prompts = _prompts(body)
    choices = options.n * len(prompts)
    if choices > serving.max_n:
        given = "best_of" if chooses else "n"
        raise InvalidRequest(
            f"'prompt' and '{given}' ask for {choices} answers; this server allows up to "
            f"{serving.max_n}.",
            at=Sent("prompt" if len(prompts) > 1 else given),
        )
    return AnswerRequest(
        asked=Prompts(tuple(prompts), body.suffix or None),
        options=options,
        spelling=partial(
            CompletionSpelling,
            stream_options=body.stream_options,
            logprobs=body.logprobs,
            best=(body.n or 1) if chooses else None,
        ),
        stream=bool(body.stream),
        operation="text_completion",
        renamed={**renamed, **constrained},
    )


def _best_of(body: CompletionRequest, n: int) -> int:
    """Raises: InvalidRequest."""
    best_of = body.best_of or 1
    if best_of < n:
        raise InvalidRequest("'best_of' must be at least 'n'.", at=Sent("best_of"))
    if body.stream:
        raise InvalidRequest(
            "'best_of' is not for streams: the best is known at the end.", at=Sent("best_of")
        )
    return best_of


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts one by one. Raises: InvalidRequest when the list is mixed or empty."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("'prompt' is an empty list.", at=Sent("prompt"))
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise InvalidRequest(
            "'prompt' must be one text, texts, token ids, or lists of token ids; not a mix.",
            at=Sent("prompt"),
        )
    return [prompt] if kinds == {int} else prompt  # type: ignore[list-item, return-value]


def sampling_options(
    body: SamplingFields, serving: Serving, **more: Any
) -> tuple[Options, dict[Location, Sent]]:
    """What all kinds of request say, and what the client calls the constraint. `more` is what
    only one of them has.

    Raises: InvalidRequest naming the field.
    """
    defaults = serving.sampling
    n = body.n or 1
    if n > serving.max_n:
        raise InvalidRequest(f"'n' is {n}; this server allows up to {serving.max_n}.", at=Sent("n"))
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "'stream_options' is only for requests with 'stream': true.",
            at=Sent("stream_options"),
        )
    if body.prompt_logprobs is not None and body.stream:
        raise InvalidRequest(
            "'prompt_logprobs' is not for streams: leave out 'stream'.", at=Sent("prompt_logprobs")
        )
    constrained = read_constraint(body, body.response_format)
    options = Options(
        n=n,
        seed=_seed(body),
        min_tokens=body.min_tokens or 0,
        sampling=msgspec.structs.replace(sampling_of(body, defaults), logit_bias=_bias(body)),
        stop=stops_of(body),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        include_stop=bool(body.include_stop_str_in_output),
        constraint=None if constrained is None else constrained[0],
        prompt_logprobs=body.prompt_logprobs,
        token_ids=bool(body.return_token_ids),
        **more,
    )
    return options, {} if constrained is None else {CONSTRAINT: constrained[1]}


def sampling_of(body: SamplerFields, defaults: SamplingDefaults) -> Sampling:
    """How tokens are chosen: as the body says, else as the model's makers want it."""
    return Sampling(
        temperature=_or(body.temperature, defaults.temperature),
        top_p=_or(body.top_p, defaults.top_p),
        # vLLM's -1 is off, too
        top_k=max(0, defaults.top_k if body.top_k is None else body.top_k),
        min_p=_or(body.min_p, defaults.min_p),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        repetition_penalty=_or(body.repetition_penalty, defaults.repetition_penalty),
    )


def stops_of(body: SamplerFields) -> tuple[str, ...]:
    """The stop strings."""
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _seed(body: SamplingFields) -> int | None:
    """`seed` (OpenAI) or `random_seed` (Mistral)."""
    check_seed(body.seed)
    check_seed(body.random_seed, Sent("random_seed"))
    return _same(body.seed, "seed", body.random_seed, "random_seed")


def _bias(body: SamplingFields) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, bias in (body.logit_bias or {}).items():
        if not _CANONICAL_ID.fullmatch(key):  # "01" would be a second name of "1"
            raise InvalidRequest(
                f"'logit_bias' maps token ids to numbers; {key[:40]!r} is no token id.",
                at=Sent("logit_bias"),
            )
        pairs.append((int(key), bias))
    return tuple(sorted(pairs))


def plain_messages(messages: list[Message]) -> tuple[ChatMessage, ...]:
    """Messages as plain text. Raises: InvalidRequest, UnsupportedParameter naming the message."""
    last = len(messages) - 1
    return tuple(
        _plain(message, Sent("messages", index), is_last=index == last)
        for index, message in enumerate(messages)
    )


def is_given(value: object) -> bool:
    """Whether a field that can't be served asks for anything: null, false and [] do not."""
    return not is_neutral("", value) if isinstance(value, Raw) else bool(value)


def _plain(message: Message, at: Sent, *, is_last: bool) -> ChatMessage:
    for name in ("function_call", "audio"):
        if is_given(getattr(message, name)):
            raise UnsupportedParameter(f"'{name}' in a message is not supported.", at=at.at(name))
    calls = past_calls(message.tool_calls)
    if calls and message.role != "assistant":
        raise InvalidRequest(
            "'tool_calls' are for messages of the assistant.", at=at.at("tool_calls")
        )
    if message.prefix and not (is_last and message.role == "assistant"):
        raise InvalidRequest(
            "'prefix' is for the last message, and only if it is the assistant's.",
            at=at.at("prefix"),
        )
    if message.content is None and message.role not in ("assistant", "tool"):
        raise InvalidRequest("'content' is required.", at=at.at("content"))
    thought = message.reasoning_content or message.reasoning or ""
    content = message.content
    if isinstance(content, list) and message.role == "assistant":
        chunks, content = _without_thoughts(content, at.at("content"))
        thought = thought or chunks
    return ChatMessage(
        role="system" if message.role == "developer" else message.role,
        content=None if content is None else _text(content, at.at("content")),
        name=message.name if message.role == "tool" else None,
        tool_calls=calls,
        tool_call_id=message.tool_call_id if message.role == "tool" else None,
        reasoning=thought if message.role == "assistant" else "",
    )


def _without_thoughts(parts: list[ContentPart], at: Sent) -> tuple[str, list[ContentPart]]:
    """Mistral's thinking chunks as text, and the other parts. Raises: InvalidRequest."""
    thoughts, others = [], []
    for index, part in enumerate(parts):
        if part.type != "thinking":
            others.append(part)
            continue
        try:
            chunks = msgspec.json.decode(part.thinking, type=str | list[ThoughtChunk])
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidRequest(
                "'thinking' is a text, or a list of chunks of type 'text'.",
                at=at.at(index, "thinking"),
            ) from error
        thoughts += [chunks] if isinstance(chunks, str) else [chunk.text for chunk in chunks]
    return "".join(thoughts), others


def _text(content: str | list[ContentPart], at: Sent) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if part.type not in ("text", "input_text"):
            raise UnsupportedParameter(
                f"Content of type {part.type[:40]!r} is not supported: the model reads text only, "
                "and this server never fetches anything.",
                at=at.at(index, "type"),
            )
        if part.text is None:
            raise InvalidRequest("'text' is required.", at=at.at(index, "text"))
        for name in part.__struct_fields__:
            if name not in TEXT_PART_FIELDS and is_given(getattr(part, name)):
                raise InvalidRequest(
                    f"'{name}' is not a field of text.",
                    at=at.at(index, name),
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
            at=Sent(second_name),
        )
    return second if first is None else first

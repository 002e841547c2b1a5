"""Fields of OpenAI's, Mistral's and vLLM's requests that are known here and not acted on.

Clients send them whether they need them or not, mostly as null or at the value that is done
anyway. Then they are accepted; what would change the answer is refused by name, never dropped
without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from maestrale.errors import Sent, UnsupportedParameter

# Change nothing here, whatever they say: accepted, and listed in the docs.
IGNORED_FIELDS = {
    "user": "an end user's name, for the provider's records",
    "metadata": "labels for the provider's records",
    "store": "whether the provider keeps the answer; here only responses are kept",
    "service_tier": "there is one tier",
    "safety_identifier": "an end user's name, for the provider's abuse checks",
    "prompt_cache_key": "the prefix cache finds shared beginnings by itself",
    "prompt_cache_options": "the prefix cache finds shared beginnings by itself",
    "prompt_cache_retention": "the prefix cache keeps what fits",
    "cache_prompt": "the prefix cache keeps what fits",
    "prediction": "a hint for speed that never changes the answer",
    "document_image_limit": "there are no documents, so no images in them",
    "document_page_limit": "there are no documents, so no pages of them",
    "request_id": "the header x-request-id names a request",
    "guided_decoding_backend": "there is one",
    "spaces_between_special_tokens": "control tokens are never part of the text",
}

# Would change the answer in a way that can't be done here: refused, with the reason.
UNSUPPORTED_FIELDS = {
    "functions": "use a model that knows tools, and 'tools'",
    "function_call": "use a model that knows tools, and 'tools'",
    "audio": "the model answers with text only",
    "web_search_options": "there is no web search",
    "moderation": "there is no moderation model",
    "guardrails": "there are no guardrails",
    "verbosity": "the model has no such mode; ask for it in the prompt",
    "top_prompt_logprobs": "ask for 'prompt_logprobs'",
    "chat_template": "a template from a request would be code from a stranger; "
    "start the server with --chat-template",
    "documents": "put them into the messages",
    "mm_processor_kwargs": "the model reads text only",
    "media_io_kwargs": "the model reads text only",
    "prompt_embeds": "the prompt is text or token ids",
    "add_generation_prompt": "an answer always begins a turn; "
    "for one that goes on from the last message there is 'prefix'",
    "continue_final_message": "mark the last message with 'prefix'",
    "use_beam_search": "tokens are sampled one by one",
    "length_penalty": "it is for beam search",
    "early_stopping": "it is for beam search",
    "typical_p": "top_k, top_p and min_p choose",
    "bad_words": "use 'logit_bias'",
    "allowed_token_ids": "use 'logit_bias', or 'response_format'",
    "include_stop_str_in_output": "a stop string is never part of the answer",
    "skip_special_tokens": "control tokens are never part of the text",
    "detokenize": "the answer is text",
    "truncate_prompt_tokens": "a prompt is never cut without a word",
    "return_tokens_as_token_ids": "with 'logprobs' each token comes with its id",
    "return_token_ids": "with 'logprobs' each token comes with its id",
    "structured_outputs": "use 'response_format'",
    "structural_tag": "use 'response_format'",
    "guided_json": "use 'response_format'",
    "guided_regex": "use 'response_format'",
    "guided_choice": "use 'response_format' with an enum",
    "guided_grammar": "use 'response_format'",
    "guided_whitespace_pattern": "use 'response_format'",
    "json_schema": "use 'response_format'",
    "grammar": "use 'response_format'",
    "logits_processors": "it would be code from a stranger",
    "repetition_detection": "use 'repetition_penalty'",
    "priority": "requests take turns by key",
    "cache_salt": "the prefix cache is shared by all keys",
    "kv_transfer_params": "there is one engine",
    "vllm_xargs": "they are for vLLM's own plugins",
    "suffix": "the model can't fill in the middle",
}

_NO_THOUGHTS = "a plain prompt is gone on from, without thoughts; use chat completions"
# Of chat completions alone: refused in others.
CHAT_FIELDS = {
    **dict.fromkeys(("reasoning_effort", "prompt_mode", "reasoning", "thinking"), _NO_THOUGHTS),
    **dict.fromkeys(("include_reasoning", "thinking_token_budget"), _NO_THOUGHTS),
    "chat_template_kwargs": "a plain prompt has no template",
}

# What they say when they ask for what is done anyway, beside null, false and [].
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "reasoning_effort": ("none",),
    "reasoning": ({}, {"effort": "none"}, {"enabled": False}),
    "thinking": ({"type": "disabled"},),
    "include_reasoning": (True,),
    "thinking_token_budget": (0, -1),
    "chat_template_kwargs": ({},),
    "verbosity": ("medium",),
    "function_call": ("none",),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    "add_generation_prompt": (True,),
    "length_penalty": (1, 0),
    "typical_p": (1,),
    "skip_special_tokens": (True,),
    "detokenize": (True,),
    "guided_json": ({}, ""),
    "guided_regex": ("",),
    "guided_grammar": ("",),
    "grammar": ("",),
    "json_schema": ({},),
    "kv_transfer_params": ({},),
    "vllm_xargs": ({},),
    "cache_salt": ("",),
    "priority": (0,),
}
# Of these, false would change the answer.
_TRUE_ALONE = frozenset({"add_generation_prompt", "skip_special_tokens", "detokenize"})

NULL = Raw(b"null")


def null() -> Raw:
    """A field that is not given."""
    return NULL


def refuse_unsupported(body: Struct, fields: Mapping[str, str] = UNSUPPORTED_FIELDS) -> None:
    """Raises: UnsupportedParameter for one of these fields that asks for what can't be done."""
    for name, reason in fields.items():
        value = getattr(body, name, NULL)
        if not is_neutral(name, value):
            raise UnsupportedParameter(f"'{name}' is not supported: {reason}.", at=Sent(name))


def is_neutral(name: str, value: Raw) -> bool:
    """Whether a field that can't be served asks for nothing, or for what is done anyway."""
    raw = bytes(value)
    if raw == b"null":
        return True
    if raw in (b"false", b"[]") and name not in _TRUE_ALONE:
        return True
    if len(raw) > 100 or name not in NEUTRAL_VALUES:
        return False
    try:
        said = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return False
    return any(_same(said, known) for known in NEUTRAL_VALUES[name])


def _same(one: Any, other: Any) -> bool:
    """Equal, where true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def with_fields(base: type[Struct], names: dict[str, str]) -> type[Struct]:
    """A class of bodies that have `base`'s fields, and these, whatever is in them."""
    fields = [(name, Raw, msgspec.field(default_factory=null)) for name in names]
    return msgspec.defstruct(
        f"{base.__name__}WithForeign", fields, bases=(base,), kw_only=True, module=__name__
    )

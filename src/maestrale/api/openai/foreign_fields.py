"""Fields of other servers' requests that are known here and not acted on.

OpenAI's, Mistral's, vLLM's, llama.cpp's, Ollama's, LiteLLM's, OpenRouter's and Open WebUI's; those
that mean something here under another name are in other_names.py. Clients send them whether they
need them or not, mostly as null or at the value that is done anyway. Then they are accepted; what
would change the answer is refused by name, never dropped without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from maestrale.errors import InvalidRequest, Sent, UnsupportedParameter

# Change nothing here, whatever they say: accepted, and listed in the docs.
IGNORED_FIELDS = {
    # OpenAI's and Mistral's
    "user": "an end user's name, for the provider's records",
    "metadata": "labels for the provider's records",
    "store": "whether the provider keeps the answer; false: no stream of it is kept (--durable)",
    "service_tier": "there is one tier",
    "safety_identifier": "an end user's name, for the provider's abuse checks",
    "prompt_cache_key": "the prefix cache finds shared beginnings by itself",
    "prompt_cache_options": "the prefix cache finds shared beginnings by itself",
    "prompt_cache_retention": "the prefix cache keeps what fits",
    "prediction": "a hint for speed that never changes the answer",
    "document_image_limit": "there are no documents, so no images in them",
    "document_page_limit": "there are no documents, so no pages of them",
    # vLLM's
    "request_id": "the header x-request-id names a request",
    "guided_decoding_backend": "there is one",
    "spaces_between_special_tokens": "control tokens are never part of the text",
    # llama.cpp's and Ollama's
    "cache_prompt": "the prefix cache keeps what fits",
    "id_slot": "requests have no slots of their own; the prefix cache is for all",
    "slot_id": "requests have no slots of their own; the prefix cache is for all",
    "keep_alive": "the server's settings say how long a model stays loaded",
    "ttl": "the server's settings say how long a model stays loaded",
    "n_keep": "a context is never shifted, so nothing is let go",
    "n_discard": "a context is never shifted, so nothing is let go",
    "min_keep": "the likeliest token is always kept",
    **dict.fromkeys(
        (
            *("dynatemp_exponent", "mirostat_tau", "mirostat_eta", "xtc_threshold", "dry_base"),
            *("dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
        ),
        "tunes a sampler of llama.cpp's that isn't on here",
    ),
    # LiteLLM's, OpenRouter's and Open WebUI's
    "litellm_call_id": "for LiteLLM's records",
    "litellm_metadata": "for LiteLLM's records",
    "litellm_session_id": "for LiteLLM's records",
    "litellm_trace_id": "for LiteLLM's records",
    "tags": "labels for a proxy's records",
    "caching": "for a proxy that keeps answers",
    "custom_llm_provider": "for a proxy in front of several servers",
    "allowed_openai_params": "for a proxy that drops parameters",
    "num_retries": "for a proxy in front of several servers",
    "fallbacks": "for a proxy in front of several servers",
    "models": "other models for a proxy to ask when this one fails",
    "provider": "for a proxy in front of several servers",
    "route": "for a proxy in front of several servers",
    "usage": "every answer tells its usage",
    "timeout": "how long the client waits; when it leaves, the work ends",
    "request_timeout": "how long the client waits; when it leaves, the work ends",
    "chat_id": "for the client's records",
    "session_id": "for the client's records",
    "background_tasks": "work that the client has for itself",
    "model_item": "for the client's records",
    "id": "for the client's records",
    "parent_id": "for the client's records",
    "user_message": "for the client's records",
    "parent_message": "for the client's records",
}

_FORMAT = "use 'response_format' or 'structured_outputs'"
_NEVER_CODE = "it would be code from a stranger"
_BEAMS = "it is for beam search"
_TEXT_ONLY = "the model reads text only"
_SAMPLERS = "temperature, top_k, top_p and min_p choose, in the order that vLLM has"
_NO_DRY = "use 'repetition_penalty'"
_BESIDE = "what is in it stands beside the other fields of a request, or in its head"
# Would change the answer in a way that can't be done here: refused, with the reason.
UNSUPPORTED_FIELDS = {
    # OpenAI's and Mistral's
    "functions": "use a model that knows tools, and 'tools'",
    "function_call": "use a model that knows tools, and 'tools'",
    "audio": "the model answers with text only",
    "web_search_options": "there is no web search",
    "moderation": "there is no moderation model",
    "guardrails": "there are no guardrails",
    "verbosity": "the model has no such mode; ask for it in the prompt",
    "suffix": "it is for completions; use /v1/completions or /v1/fim/completions",
    # vLLM's
    "top_prompt_logprobs": "ask for 'prompt_logprobs'",
    "chat_template": "a template from a request would be code from a stranger; "
    "start the server with --chat-template",
    "documents": "put them into the messages",
    "mm_processor_kwargs": _TEXT_ONLY,
    "media_io_kwargs": _TEXT_ONLY,
    "prompt_embeds": "the prompt is text or token ids",
    "add_generation_prompt": "an answer always begins a turn; "
    "for one that goes on from the last message there is 'continue_final_message'",
    "continue_final_message": "it is for chat completions",
    "use_beam_search": "tokens are sampled one by one",
    "length_penalty": _BEAMS,
    "early_stopping": _BEAMS,
    "typical_p": "top_k, top_p and min_p choose",
    "bad_words": "use 'logit_bias'",
    "allowed_token_ids": f"use 'logit_bias'; for texts that may be chosen, {_FORMAT}",
    "skip_special_tokens": "control tokens are never part of the text",
    "detokenize": "the answer is text",
    "truncate_prompt_tokens": "a prompt is never cut without a word",
    "return_tokens_as_token_ids": "'return_token_ids' tells the ids",
    "return_token_ids": "it is for chat completions and completions",
    "logprob_token_ids": "the likeliest tokens are told, by 'top_logprobs' or 'logprobs'",
    "structural_tag": _FORMAT,
    "guided_whitespace_pattern": "JSON has the layout that the model prefers",
    "logits_processors": _NEVER_CODE,
    "repetition_detection": _NO_DRY,
    "priority": "requests take turns by key, so that nobody can push ahead of others",
    "cache_salt": "the prefix cache is shared by all keys",
    "kv_transfer_params": "there is one engine",
    "vllm_xargs": "they are for vLLM's own plugins",
    # llama.cpp's and Ollama's
    "n_probs": "ask for 'logprobs'",
    "post_sampling_probs": "log-probabilities are the model's, before sampling",
    "samplers": _SAMPLERS,
    "sampler_seq": _SAMPLERS,
    "dynatemp_range": "the temperature is the same for all tokens",
    "mirostat": _SAMPLERS,
    "xtc_probability": _SAMPLERS,
    "top_n_sigma": _SAMPLERS,
    "top_a": _SAMPLERS,
    "tfs_z": _SAMPLERS,
    "dry_multiplier": _NO_DRY,
    "t_max_predict_ms": "bound the answer with 'max_tokens'",
    "timings_per_token": "the metrics and the log tell times",
    "return_progress": "events begin with the first token",
    "return_tokens": "'return_token_ids' tells the ids",
    "response_fields": "an answer always has all fields",
    "lora": "the model is served as it is",
    "image_data": _TEXT_ONLY,
    "images": _TEXT_ONLY,
    "raw": "for a plain prompt there is /v1/completions",
    "template": "a template from a request would be code from a stranger; "
    "start the server with --chat-template",
    "reasoning_format": "thoughts are always apart from the answer",
    # LiteLLM's, OpenRouter's and Open WebUI's
    "mock_response": "answers are the model's",
    "drop_params": "a field is never dropped without a word; the operator may start the server "
    "with --unknown-fields ignore",
    "extra_body": _BESIDE,
    "extra_query": _BESIDE,
    "extra_headers": _BESIDE,
    "litellm_params": _BESIDE,
    "params": _BESIDE,
    "variables": "put their values into the messages",
    "api_base": "the server calls no other server",
    "base_url": "the server calls no other server",
    "transforms": "a prompt is never cut without a word",
    "plugins": "there are no plugins",
    "files": "put them into the messages",
    "features": "the server has no web search, images or code of its own",
    "filter_ids": "there are no filters",
    "tool_ids": "send 'tools'",
    "skill_ids": "there are no skills; put them into the messages",
    "terminal_id": "the server runs nothing",
    "tool_servers": "send 'tools'; the server calls no other server",
}

# Of Ollama's `options`: how a model is loaded, which is the server's to say, and samplers.
OPTIONS_IGNORED = {
    **dict.fromkeys(
        ("num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram", "f16_kv"),
        "how the model is loaded is set at the server's start",
    ),
    **dict.fromkeys(
        ("use_mmap", "use_mlock", "vocab_only", "logits_all"),
        "how the model is loaded is set at the server's start",
    ),
    "num_keep": IGNORED_FIELDS["n_keep"],
    "mirostat_tau": IGNORED_FIELDS["mirostat_tau"],
    "mirostat_eta": IGNORED_FIELDS["mirostat_eta"],
}
OPTIONS_UNSUPPORTED = {
    **{name: UNSUPPORTED_FIELDS[name] for name in ("mirostat", "tfs_z", "typical_p")},
    "penalize_newline": "penalties are the same for all tokens",
}

_NO_THOUGHTS = "a plain prompt is gone on from, without thoughts; use chat completions"
# Of chat completions alone: refused in others.
CHAT_FIELDS = {
    **dict.fromkeys(("reasoning_effort", "prompt_mode", "reasoning", "thinking"), _NO_THOUGHTS),
    **dict.fromkeys(("include_reasoning", "thinking_token_budget"), _NO_THOUGHTS),
    "chat_template_kwargs": "a plain prompt has no template",
    "think": _NO_THOUGHTS,
    "enable_thinking": _NO_THOUGHTS,
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
    "kv_transfer_params": ({},),
    "vllm_xargs": ({},),
    "cache_salt": ("",),
    "priority": (0,),
    "n_probs": (0,),
    "dynatemp_range": (0,),
    "mirostat": (0,),
    "xtc_probability": (0,),
    "top_n_sigma": (-1,),
    "top_a": (0,),
    "tfs_z": (1,),
    "dry_multiplier": (0,),
    "t_max_predict_ms": (0, -1),
    "reasoning_format": ("auto", "deepseek"),
    **dict.fromkeys(("features", "params", "variables", "litellm_params"), ({},)),
    **dict.fromkeys(("extra_body", "extra_query", "extra_headers"), ({},)),
    "penalize_newline": (True,),
}
# Of these, false would change the answer.
_TRUE_ALONE = frozenset(
    {"add_generation_prompt", "skip_special_tokens", "detokenize", "penalize_newline"}
)
# Of these, each switch that is off asks for nothing.
_SWITCHES = frozenset({"features"})

NULL = Raw(b"null")
NOWHERE = Sent()
MAX_IGNORED_BYTES = 64 * 1024
MAX_NEUTRAL_BYTES = 300


def null() -> Raw:
    """A field that is not given."""
    return NULL


def check_foreign(
    body: Struct,
    inside: Sent = NOWHERE,
    *,
    unsupported: Mapping[str, str] = UNSUPPORTED_FIELDS,
    ignored: Mapping[str, str] = IGNORED_FIELDS,
) -> None:
    """Refuse what can't be done, and what is too large to be ignored in good faith.

    `inside`: where in the request the body is. Raises: UnsupportedParameter, InvalidRequest.
    """
    for name, reason in unsupported.items():
        value = getattr(body, name, NULL)  # no Raw where this kind of body acts on it
        if isinstance(value, Raw) and not is_neutral(name, value):
            at = inside.at(name)
            raise UnsupportedParameter(f"'{at}' is not supported: {reason}.", at=at)
    for name in ignored:
        value = getattr(body, name, NULL)
        if isinstance(value, Raw) and len(bytes(value)) > MAX_IGNORED_BYTES:
            at = inside.at(name)
            raise InvalidRequest(f"'{at}' is larger than {MAX_IGNORED_BYTES} bytes.", at=at)


def refuse_but(body: Struct, fields: Mapping[str, str], done_anyway: Mapping[str, bytes]) -> None:
    """Refuse these fields, name → why not, unless they are null or say what is done anyway.

    Raises: UnsupportedParameter.
    """
    for name, reason in fields.items():
        if bytes(getattr(body, name)) not in (b"null", done_anyway.get(name)):
            raise UnsupportedParameter(f"'{name}' is not supported: {reason}.", at=Sent(name))


def is_neutral(name: str, value: Raw) -> bool:
    """Whether a field that can't be served asks for nothing, or for what is done anyway."""
    raw = bytes(value)
    if raw == b"null":
        return True
    if raw in (b"false", b"[]") and name not in _TRUE_ALONE:
        return True
    if len(raw) > MAX_NEUTRAL_BYTES or name not in NEUTRAL_VALUES:
        return False
    try:
        said = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return False
    if name in _SWITCHES and isinstance(said, dict) and not any(said.values()):
        return True
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

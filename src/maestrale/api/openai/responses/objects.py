"""The Response object: what a request asked for, as every answer to it repeats."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import structs

from maestrale.api.openai.responses.schemas import ResponsesRequest, TextConfig
from maestrale.chat.answer import Usage
from maestrale.chat.options import Options

Body = dict[str, Any]


def echoed(body: ResponsesRequest, options: Options, *, store: bool) -> Body:
    """What a Response repeats of its request."""
    sampling = options.sampling
    return {
        "background": bool(body.background),
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": _reasoning(body),
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": store,
        "temperature": sampling.temperature,
        "text": _text(body.text),
        "tool_choice": msgspec.json.decode(body.tool_choice) or "auto",
        "tools": [_tool(msgspec.json.decode(raw)) for raw in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _reasoning(body: ResponsesRequest) -> Body:
    asked = body.reasoning
    if asked is None:
        return {"effort": None, "summary": None}
    return {"effort": asked.effort, "summary": asked.summary or asked.generate_summary}


def _tool(written: Body) -> Body:
    """A function with the fields that each one has; a namespace as it is."""
    if written.get("type") == "namespace":
        return {"description": "", **written}
    return {
        "description": None,
        "parameters": None,
        **written,
        "strict": bool(written.get("strict")),
    }


def _text(config: TextConfig | None) -> Body:
    form: Body = {"type": "text"}
    if config is not None and config.format is not None:
        given = structs.asdict(config.format)
        given["schema"] = msgspec.json.decode(config.format.schema)
        form = {name: value for name, value in given.items() if value is not None}
    verbosity = config.verbosity if config is not None else None
    return {"format": form, "verbosity": verbosity or "medium"}


def usage_of(usage: Usage) -> Body:
    """Token counts, as the Responses API has them."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }

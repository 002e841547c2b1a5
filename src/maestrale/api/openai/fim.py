"""Mistral's fill-in-the-middle: /v1/fim/completions, which its clients call `client.fim`.

The answer has the shape of a chat completion. Completions do the same with `suffix`.
"""

from __future__ import annotations

from functools import partial

from maestrale.api.answering import Serving
from maestrale.api.dialect import AnswerRequest
from maestrale.api.openai.foreign_fields import CHAT_FIELDS, check_foreign
from maestrale.api.openai.other_names import with_own_names
from maestrale.api.openai.reading import sampling_options
from maestrale.api.openai.schemas import FimRequest
from maestrale.api.openai.spelling import ChatSpelling
from maestrale.chat.options import Prompts


def read_fim(body: FimRequest, serving: Serving) -> AnswerRequest:
    """What stands between `prompt` and `suffix`; without a suffix, what comes after the prompt.

    Raises: InvalidRequest, UnsupportedParameter.
    """
    check_foreign(body)
    check_foreign(body, unsupported=CHAT_FIELDS)
    body, renamed = with_own_names(body, serving)
    max_tokens = None if body.max_tokens == -1 else body.max_tokens
    options, constrained = sampling_options(body, serving, max_tokens=max_tokens)
    return AnswerRequest(
        asked=Prompts((body.prompt,), suffix=body.suffix or ""),
        options=options,
        spelling=partial(ChatSpelling, stream_options=body.stream_options),
        stream=bool(body.stream),
        operation="text_completion",
        renamed={**renamed, **constrained},
    )

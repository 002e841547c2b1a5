"""The requests as token ids, for a peer that is no server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import questions
from maestrale.prompt.encode import encoder_for
from maestrale.prompt.messages import ChatMessage


def job(folder: Path, streams: Sequence[tuple[int, int]], reader: int) -> dict[str, Any]:
    """What genai.py is to run; `folder`: our prepared model, for its tokenizer and template."""
    encoder = encoder_for(folder)

    def encode(messages: list[dict[str, Any]]) -> list[int]:
        told = [ChatMessage(role=one["role"], content=one["content"]) for one in messages]
        return list(encoder.encode_chat(told).token_ids)

    begun = [questions.user("")]
    asked = encode(begun)
    whole = encode([*begun, questions.assistant(""), questions.user(questions.FOLLOW_UP)])
    return {
        "warm_up": encode(questions.short(1, 100)[0]),
        "streams": [
            (count, tokens, [[encode(one) for one in batch] for batch in questions.batches(count)])
            for count, tokens in streams
        ],
        "article": encode(questions.long(reader)),
        # What comes behind the answer's own tokens.
        "follow_up": whole[len(asked) :],
        "reading_seconds": questions.READING_SECONDS,
    }

"""What every peer is asked: the same requests, in the same order, in every round."""

from __future__ import annotations

import itertools
from typing import Any

from maestrale.bench.scenarios import article, turns_of
from maestrale.verify.scenarios import JSON_ONLY

Message = dict[str, Any]

TOPICS = ("Rome", "the sea", "bread", "chess", "rain", "tea", "music", "volcanoes")
READING_SECONDS = 2.0
"""Between the end of an answer and the follow-up, for every peer alike."""
SETTLING_SECONDS = 2.0
"""Between a server's first answer and what is measured, for every peer alike."""
ALONE = 4  # questions that one stream asks
LENGTHS = (30, 40, 50, 60, 70, 80, 90, 120)


def short(count: int, series: int) -> list[list[Message]]:
    """`count` ≤ 64 short questions; no two series have one in common."""
    words = [length + series for length in LENGTHS]
    asked = (
        f"Tell me about {topic}, in {number} words."
        for number, topic in itertools.product(words, TOPICS)
    )
    return [[user(text)] for text in itertools.islice(asked, count)]


def batches(streams: int) -> list[list[list[Message]]]:
    """What is asked at once by so many; one alone asks several questions, one after the other.

    How often a server's guesses at the next tokens are right depends on the text.
    """
    if streams > 1:
        return [short(streams, series=streams)]
    return [[messages] for messages in short(ALONE, series=1)]


def long(reader: int) -> list[Message]:
    """The article, a little longer than in the collection: about 1,350 tokens of SmolLM2's.

    Each reader's begins otherwise, so that no prefix cache has it.
    """
    text = article()
    again = "\n\n".join(text.split("\n\n")[:1])
    return [
        user(
            f"Reader {reader}. Read this article.\n\n{text}\n\nIt began so:\n\n{again}\n\n"
            "Summarise the article in a few sentences."
        )
    ]


FOLLOW_UP = "Why is the mistral both an enemy and a friend for farmers?"


def structured() -> tuple[list[Message], dict[str, Any]]:
    """A request of the collection for nested JSON: its messages and its response_format."""
    turn = next(one for one in turns_of(JSON_ONLY) if one.label.startswith("Nested objects"))
    return list(turn.messages), turn.fields["response_format"]


def other_schema(number: int) -> dict[str, Any]:
    """A response_format that no cache has: a large object with properties of its own."""
    properties = {
        f"field_{number}_{index}": {
            "type": "object",
            "additionalProperties": False,
            "required": ["kind", "values"],
            "properties": {
                "kind": {
                    "type": "string",
                    "enum": [f"{number}-{index}-{one}" for one in range(20)],
                },
                "values": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 4,
                    "items": {"type": "integer"},
                },
            },
        }
        for index in range(12)
    }
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": "large", "strict": True, "schema": schema},
    }


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}

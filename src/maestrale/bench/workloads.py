"""What is asked: workloads as endless, seeded series of conversations.

The three scenarios of the project's collection are read from it (`scenarios.py`); a file of
one's own comes from `file.py`. What all share is here: a conversation is a few turns, each
turn is sent when the answer to the one before is there, with all that was said.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from maestrale.bench.conversation import (
    BenchConversation,
    BenchTurn,
    Message,
    Workload,
    WorkloadOptions,
)
from maestrale.errors import CannotBench

TOPICS = (
    *("Rome", "the sea", "bread", "chess", "rain", "tea", "music", "volcanoes", "the Moon"),
    *("bicycles", "glass", "honey", "the Alps", "sleep", "paper", "whales", "coffee", "maps"),
    *("trains", "salt", "deserts", "owls", "clocks", "silk", "bridges", "rivers", "cheese"),
    *("lighthouses", "ice", "olives", "wolves", "the violin"),
)
QUESTIONS = (
    "Tell me about {topic}.",
    "Explain {topic} to a child of ten.",
    "What are three facts about {topic}?",
    "Write a short poem about {topic}.",
    "Why do people care about {topic}?",
    "What is a common mistake that people make about {topic}?",
)
FOLLOW_UPS = (
    "Say that again in one sentence.",
    "Can you give me an example?",
    "Why is that so?",
    "What else should I know?",
)
# A vocabulary of short words: about one token each for most tokenizers.
WORDS = [
    *("the", "of", "and", "to", "in", "is", "was", "for", "on", "with", "at", "by", "from"),
    *("as", "that", "this", "it", "not", "but", "all", "one", "two", "new", "old", "day"),
    *("night", "water", "house", "road", "hand", "time", "year", "work", "world", "life"),
    *("part", "place", "case", "week", "point", "group", "fact", "eye", "door", "line", "city"),
    *("name", "side", "head", "light", "tree", "stone", "wind", "sea", "field", "white", "black"),
    *("green", "long", "small", "great", "high", "open", "close", "over", "under"),
]


def chat(options: WorkloadOptions) -> Iterator[BenchConversation]:
    """Conversations of three turns between people and an assistant."""
    draw = random.Random(f"chat {options.seed}")  # noqa: S311
    fields = {"max_tokens": 128, "temperature": 0}
    for number in itertools.count(1):
        question = draw.choice(QUESTIONS).format(topic=draw.choice(TOPICS))
        opening = _user(f"{question} (I am visitor {number}.)")
        follow_ups = [_user(text) for text in draw.sample(FOLLOW_UPS, 2)]
        yield BenchConversation(
            (
                BenchTurn("first question", (opening,), fields),
                *(BenchTurn("follow-up", (message,), fields) for message in follow_ups),
            )
        )


def shared_prefix(options: WorkloadOptions) -> Iterator[BenchConversation]:
    """One long system prompt for everybody, and a short question each."""
    from maestrale.bench.scenarios import article

    system = {
        "role": "system",
        "content": f"Answer in one or two sentences, from this text.\n\n{article()}",
    }
    draw = random.Random(f"shared {options.seed}")  # noqa: S311
    fields = {"max_tokens": 64, "temperature": 0}
    while True:
        topic = draw.choice(TOPICS)
        ask = f"Does the text say anything about {topic}? What would it say?"
        yield BenchConversation((BenchTurn("question", (system, _user(ask)), fields),))


def random_lengths(options: WorkloadOptions) -> Iterator[BenchConversation]:
    """Prompts and answers of random lengths, evenly spread on a logarithmic scale."""
    draw = random.Random(f"random {options.seed}")  # noqa: S311
    while True:
        words = _log_uniform(draw, options.input_words)
        tokens = _log_uniform(draw, options.output_tokens)
        text = " ".join(draw.choices(WORDS, k=words))
        fields = {"max_tokens": tokens, "temperature": 0}
        yield BenchConversation((BenchTurn("random", (_user(text),), fields),))


def _log_uniform(draw: random.Random, bounds: tuple[int, int]) -> int:
    low, high = bounds
    drawn: float = low * (high / low) ** draw.random()
    return min(high, max(low, round(drawn)))


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def known() -> dict[str, Workload]:
    """The workloads by name."""
    from maestrale.bench import scenarios

    return {
        "chat": chat,
        "questions": scenarios.questions,
        "article": scenarios.article_and_follow_ups,
        "json": scenarios.json_only,
        "shared-prefix": shared_prefix,
        "random": random_lengths,
    }


NAMES = ("chat", "questions", "article", "json", "shared-prefix", "random")


def conversations(name: str, options: WorkloadOptions) -> Iterator[BenchConversation]:
    """The series that `name` means, with what the options change in each request.

    Raises: CannotBench for a name that there is not.
    """
    workload = known().get(name)
    if workload is None:
        raise CannotBench(f"There is no workload {name!r}. There are: {', '.join(NAMES)}.")
    return adjusted(workload(options), options)


def adjusted(
    series: Iterator[BenchConversation], options: WorkloadOptions
) -> Iterator[BenchConversation]:
    """The same series with `max_tokens` and `ignore_eos` put into each request."""
    extra: dict[str, Any] = {}
    if options.max_tokens is not None:
        extra["max_tokens"] = options.max_tokens
    if options.ignore_eos:
        extra["ignore_eos"] = True
    for conversation in series:
        yield BenchConversation(
            tuple(
                BenchTurn(turn.label, turn.messages, {**turn.fields, **extra})
                for turn in conversation.turns
            )
        )

"""Pieces of a repeatable answer follow from its tokens, however the engine hands these out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from maestrale.chat.answer import Answer, Usage
from maestrale.chat.options import Options
from maestrale.chat.reader import Formats, Piece
from maestrale.engines.base import GenerationRequest, TokenDelta
from maestrale.models.vocabulary import byte_vocabulary

TEXTS = ("A short one.", "A longer answer, with ünïcödé and 🦁 in it.", "Stop here: END of it")


class UnevenEngine:
    """Hands out tokens a few at a time, at any time."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        tokens = list(TEXTS[int(request.request_id.rpartition("-")[2])].encode())
        while tokens:
            many = self._draw.randint(1, 6)
            now, tokens = tokens[:many], tokens[many:]
            for _ in range(self._draw.randint(0, 3)):
                await asyncio.sleep(0)
            if self._draw.random() < 0.3:
                yield TokenDelta((), prefilled=1)
            cached = self._draw.randint(0, 9)
            yield TokenDelta(tuple(now), None if tokens else "length", cached_tokens=cached)

    def describe(self) -> Any:
        return SimpleNamespace(max_num_seqs=8)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def pieces_of(
    seed: int, choices: int, *, repeatable: bool = True, told: list[Usage] | None = None
) -> tuple[Answer, list[Piece]]:
    async def collect() -> tuple[Answer, list[Piece]]:
        answer = Answer(
            answer_id="x",
            engine=UnevenEngine(seed),
            vocabulary=byte_vocabulary(),
            requests=tuple(
                GenerationRequest(request_id=f"x-{n}", prompt=(1, 2), max_tokens=99, seed=n)
                for n in range(choices)
            ),
            options=Options(n=choices, stop=("END",)),
            prompt_tokens=2,
            seed=0,
            leads=[""] * choices,
            formats=Formats(),
        )
        if repeatable:
            answer.repeatable("first", 17, 5)
        pieces = []
        async for piece in answer.pieces():
            pieces.append(piece)
            if told is not None:
                told.append(structs.replace(answer.usage_so_far))
        return answer, pieces

    return asyncio.run(collect())


@pytest.mark.parametrize("choices", [1, 2, 3])
def test_the_same_pieces_in_the_same_order(choices: int) -> None:
    answer, expected = pieces_of(0, choices)
    assert (answer.id, answer.created, answer.usage.cached_tokens) == ("first", 17, 5)
    for seed in range(1, 20):
        again, pieces = pieces_of(seed, choices)
        assert pieces == expected
        assert again.usage == answer.usage
    assert [request.request_id for request in answer.requests] == [
        f"first.x-{n}" for n in range(choices)
    ]
    assert [piece.index for piece in expected[:choices]] == list(range(choices))
    for index, text in enumerate(TEXTS[:choices]):
        said = "".join(piece.text for piece in expected if piece.index == index)
        assert said == text.partition("END")[0]


@pytest.mark.parametrize("choices", [1, 3])
def test_what_is_told_of_usage_is_the_same_with_each_piece(choices: int) -> None:
    expected: list[Usage] = []
    answer, pieces = pieces_of(0, choices, told=expected)
    for seed in range(1, 20):
        told: list[Usage] = []
        pieces_of(seed, choices, told=told)
        assert told == expected
    assert expected[-1] == answer.usage
    assert expected[0].completion_tokens == pieces[0].used[0] < answer.usage.completion_tokens


def test_they_would_not_be_else() -> None:
    _, expected = pieces_of(0, 3, repeatable=False)
    assert any(pieces_of(seed, 3, repeatable=False)[1] != expected for seed in range(1, 20))

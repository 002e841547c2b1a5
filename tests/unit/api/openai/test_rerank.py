"""Bodies of /v1/rerank → what is asked for; scores → results."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from maestrale.api.answering import Serving
from maestrale.api.openai.rerank import RankingSpelling, RerankRequest, read_rerank
from maestrale.chat.options import Ranking
from maestrale.errors import InvalidRequest
from maestrale.models.sampling_defaults import NEUTRAL

SERVING = Serving(max_n=1, sampling=NEUTRAL, context_length=64)


def read(**fields: Any) -> Any:
    body = {"query": "q", "documents": ["a", "b"], **fields}
    return read_rerank(msgspec.convert(body, RerankRequest), SERVING)


def test_a_body_becomes_a_ranking() -> None:
    asked = read(documents=["a", {"text": "b"}], max_tokens_per_doc=7, model="m")
    assert asked.asked == Ranking(query="q", documents=("a", "b"), max_document_tokens=7)
    assert (asked.operation, asked.stream) == ("rerank", False)


def test_a_query_is_not_read_too_often() -> None:
    query = "q" * (1 << 12)
    assert read(query=query, documents=["a"] * 2048)
    with pytest.raises(InvalidRequest, match="Send fewer documents"):
        read(query=query + "q", documents=["a"] * 2048)


def spelled(scores: dict[int, float], **fields: Any) -> list[dict[str, Any]]:
    usage = SimpleNamespace(prompt_tokens=9)
    answer = SimpleNamespace(id="x", created=1, scores=scores, usage=usage)
    given = {"top": 10, "documents": (), **fields}
    spelling = RankingSpelling(None, answer, "m", **given)  # type: ignore[arg-type]
    whole = spelling.whole([])
    assert whole["usage"]["total_tokens"] == 9
    return list(whole["results"])


def test_the_best_come_first_and_of_equal_ones_the_first() -> None:
    scores = {2: 0.5, 0: 0.1, 3: 0.9, 1: 0.5}  # as they came
    assert [each["index"] for each in spelled(scores)] == [3, 1, 2, 0]
    assert spelled(scores, top=1) == [{"index": 3, "relevance_score": 0.9}]
    shown = spelled(scores, top=2, documents=("a", "b", "c", "d"))
    assert [each["document"] for each in shown] == [{"text": "d"}, {"text": "b"}]

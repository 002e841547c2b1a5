"""POST /v1/rerank in Jina's, Cohere's, vLLM's and llama.cpp's words: documents scored, sorted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Raw
from starlette.routing import Route

from maestrale.api.answering import Serving, answering
from maestrale.api.backend import Backend
from maestrale.api.dialect import AnswerRequest
from maestrale.api.openai.embeddings import NotStreamed
from maestrale.api.openai.foreign_fields import (
    IGNORED_FIELDS,
    UNSUPPORTED_FIELDS,
    check_foreign,
    null,
    refuse_but,
    with_fields,
)
from maestrale.api.openai.schemas import Body, ShortText
from maestrale.chat.answer import Answer
from maestrale.chat.options import Options, Ranking
from maestrale.chat.reader import Piece
from maestrale.chat.service import ChatService
from maestrale.errors import InvalidRequest, Sent

MAX_DOCUMENTS = 2048  # of one request
MAX_REPEATED = 1 << 23  # characters of the query, times the documents that it is read with
PATHS = ("/v1/rerank", "/rerank", "/v2/rerank")  # v2 is Cohere's

_NEVER_CUT = "a document is cut only where 'max_tokens_per_doc' says so"
_WHOLE = "a document is read in one piece; 'max_tokens_per_doc' may cut it"
# Other servers' words for a ranking.
OTHER_WAYS = {
    "texts": "here they are 'documents'",
    "top_k": "here it is 'top_n'",
    "return_text": "here it is 'return_documents'",
    "rank_fields": "send the text of each document, as a string or as its 'text'",
    "instruction": "the model's own prompt says what is looked for; say more in 'query'",
    "max_chunks_per_doc": _WHOLE,
    "overlap_tokens": _WHOLE,
    "overlap": _WHOLE,
    "max_chunk_length": _WHOLE,
    "max_doc_length": "here it is 'max_tokens_per_doc'",
    "max_query_length": "a query is never cut",
    "max_tokens_per_query": "a query is never cut",
    "truncate": _NEVER_CUT,
    "truncation": _NEVER_CUT,
    "truncation_direction": _NEVER_CUT,
    "raw_scores": "a score is a probability, from 0 to 1",
    "use_activation": "a score is a probability, from 0 to 1",
    "return_embeddings": "for embeddings there is /v1/embeddings",
}
_NEUTRAL = {
    "use_activation": b"true",
    **dict.fromkeys(
        ("return_text", "truncate", "truncation", "raw_scores", "return_embeddings"), b"false"
    ),
}
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]


if TYPE_CHECKING:
    _Foreign = Body
else:
    _Foreign = with_fields(Body, {**IGNORED_FIELDS, **UNSUPPORTED_FIELDS, **OTHER_WAYS})


class Document(Body, kw_only=True):
    """A document as an object, which is its text."""

    text: str


class RerankRequest(_Foreign, kw_only=True):
    """POST /v1/rerank: a query, and the documents that it is to be answered by.

    `top_n`: only the best so many are told. `max_tokens_per_doc` cuts longer documents there.
    """

    query: str
    documents: list[str | Document]
    model: Annotated[str, Meta(max_length=512)] | None = None
    top_n: Count | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Count | None = None
    user: ShortText | None = None
    metadata: Raw = msgspec.field(default_factory=null)


def rerank_routes(backend: Backend) -> list[Route]:
    """POST /v1/rerank, /rerank and /v2/rerank."""
    endpoint = answering(backend, RerankRequest, read_rerank)
    return [Route(path, endpoint, methods=["POST"]) for path in PATHS]


def read_rerank(body: RerankRequest, serving: Serving) -> AnswerRequest:
    """Raises: InvalidRequest, UnsupportedParameter."""
    check_foreign(body)
    refuse_but(body, OTHER_WAYS, _NEUTRAL)
    if not body.query:
        raise InvalidRequest("'query' is empty.", at=Sent("query"))
    count, at = len(body.documents), Sent("documents")
    if not count:
        raise InvalidRequest("'documents' is an empty list.", at=at)
    if count > MAX_DOCUMENTS:
        raise InvalidRequest(
            f"'documents' has {count} entries; up to {MAX_DOCUMENTS} are allowed.", at=at
        )
    if len(body.query) * count > MAX_REPEATED:
        raise InvalidRequest(
            f"'query' has {len(body.query)} characters, and is read with each of {count} "
            f"documents: together up to {MAX_REPEATED} are allowed. Send fewer documents at once.",
            at=Sent("query"),
        )
    documents = tuple(each if isinstance(each, str) else each.text for each in body.documents)
    return AnswerRequest(
        asked=Ranking(
            query=body.query,
            documents=documents,
            max_document_tokens=body.max_tokens_per_doc,
        ),
        options=Options(),
        spelling=partial(
            RankingSpelling,
            top=body.top_n or count,
            documents=documents if body.return_documents else (),
        ),
        operation="rerank",
    )


class RankingSpelling(NotStreamed):
    """Spells scores as Jina's list of results, the best first; Cohere's clients read it, too."""

    def __init__(
        self,
        service: ChatService,
        answer: Answer,
        model: str,
        *,
        top: int,
        documents: tuple[str, ...],
    ) -> None:
        """`documents`: those to be sent back."""
        self.id = f"rerank-{answer.id}"
        self._answer = answer
        self._model = model
        self._top = top
        self._documents = documents

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The best documents; of equal ones the first comes first."""
        tokens = self._answer.usage.prompt_tokens
        ranked = sorted(self._answer.scores.items(), key=lambda item: (-item[1], item[0]))
        return {
            "id": self.id,
            "object": "list",
            "created": self._answer.created,
            "model": self._model,
            "results": [self._result(index, score) for index, score in ranked[: self._top]],
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
            # Some of Cohere's clients can't do without.
            "meta": {"tokens": {"input_tokens": tokens, "output_tokens": 0}},
        }

    def _result(self, index: int, score: float) -> dict[str, Any]:
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        if self._documents:
            result["document"] = {"text": self._documents[index]}
        return result

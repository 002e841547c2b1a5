"""POST /v1/embeddings in OpenAI's, Mistral's and vLLM's words: bodies read, vectors spelled."""

from __future__ import annotations

import base64
import struct
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw
from starlette.routing import Route

from maestrale.api.answering import Serving, answering
from maestrale.api.backend import Backend
from maestrale.api.dialect import AnswerRequest
from maestrale.api.openai.foreign_fields import (
    IGNORED_FIELDS,
    UNSUPPORTED_FIELDS,
    check_foreign,
    null,
    refuse_but,
    with_fields,
)
from maestrale.api.openai.routes import ROOTS
from maestrale.api.openai.schemas import MAX_TOKEN_IDS, Body, ShortText, TokenId, TokenIds
from maestrale.chat.answer import Answer
from maestrale.chat.options import PROMPT, Inputs, Options
from maestrale.chat.reader import Piece
from maestrale.chat.service import ChatService
from maestrale.errors import InvalidRequest, Location, Sent, UnsupportedParameter

MAX_INPUTS = 2048  # of one request, as OpenAI's

# Other servers' ways to make an embedding another one.
OTHER_WAYS = {
    "prompt": "here it is 'input'",
    "options": "the text alone decides; how the model is loaded is set at the server's start",
    "input_type": "put what the model wants to read before a text into the text",
    "prompt_name": "put what the model wants to read before a text into the text",
    "task": "put what the model wants to read before a text into the text",
    "truncate": "an input is never cut without a word",
    "truncation": "an input is never cut without a word",
    "normalize": "embeddings have the length 1, which is true",
    "embd_normalize": "embeddings have the length 1, which is 2",
    "pooling": "the model's own files say how it is pooled",
    "messages": "send the text as 'input'",
}
_NEUTRAL = {"normalize": b"true", "embd_normalize": b"2", "options": b"{}", "truncate": b"false"}

EncodingFormat = Literal["float", "base64"]
DataType = Literal["float", "int8", "uint8", "binary", "ubinary"]
Dimensions = Annotated[int, Meta(ge=1, le=2**31 - 1)]


if TYPE_CHECKING:
    _Foreign = Body
else:
    _Foreign = with_fields(Body, {**IGNORED_FIELDS, **UNSUPPORTED_FIELDS, **OTHER_WAYS})


class EmbeddingRequest(_Foreign, kw_only=True):
    """POST /v1/embeddings: a text or token ids, or a list of either.

    `output_dimension` and `output_dtype` are Mistral's, `add_special_tokens` is vLLM's.
    """

    input: str | Annotated[list[str | TokenId | TokenIds], Meta(max_length=MAX_TOKEN_IDS)]
    model: Annotated[str, Meta(max_length=512)] | None = None
    encoding_format: EncodingFormat | None = None
    dimensions: Dimensions | None = None
    output_dimension: Dimensions | None = None
    output_dtype: DataType | None = None
    add_special_tokens: bool | None = None
    user: ShortText | None = None
    metadata: Raw = msgspec.field(default_factory=null)


def embedding_routes(backend: Backend) -> list[Route]:
    """POST /v1/embeddings."""
    endpoint = answering(backend, EmbeddingRequest, read_embedding)
    return [Route(f"{root}/embeddings", endpoint, methods=["POST"]) for root in ROOTS]


def read_embedding(body: EmbeddingRequest, serving: Serving) -> AnswerRequest:
    """Raises: InvalidRequest, UnsupportedParameter."""
    if body.output_dtype not in (None, "float"):
        raise UnsupportedParameter(
            f"'output_dtype' {body.output_dtype} is not supported: embeddings are of floats.",
            at=Sent("output_dtype"),
        )
    check_foreign(body)
    refuse_but(body, OTHER_WAYS, _NEUTRAL)
    given = "dimensions" if body.output_dimension is None else "output_dimension"
    if body.dimensions not in (None, body.output_dimension) and given == "output_dimension":
        raise InvalidRequest(
            f"'dimensions' ({body.dimensions}) and 'output_dimension' ({body.output_dimension}) "
            "are two names of the same setting, and differ.",
            at=Sent("output_dimension"),
        )
    return AnswerRequest(
        asked=Inputs(
            inputs=tuple(read_inputs(body.input)),
            dimensions=body.dimensions or body.output_dimension,
        ),
        options=Options(add_special_tokens=body.add_special_tokens is not False),
        spelling=partial(EmbeddingSpelling, as_base64=body.encoding_format == "base64"),
        operation="embeddings",
        renamed={Location("dimensions"): Sent(given), PROMPT: Sent("input")},
    )


def read_inputs(given: str | list[Any]) -> list[str | list[int]]:
    """The inputs one by one. Raises: InvalidRequest for none, too many, empty ones or a mix."""
    at = Sent("input")
    kinds = {type(one) for one in given} if isinstance(given, list) else {list}
    if len(kinds) > 1:
        raise InvalidRequest(
            "'input' must be one text, texts, token ids, or lists of token ids; not a mix.", at=at
        )
    if not kinds:
        raise InvalidRequest("'input' is an empty list.", at=at)
    if isinstance(given, str) or kinds == {int}:
        given = [given]
    if len(given) > MAX_INPUTS:
        raise InvalidRequest(
            f"'input' has {len(given)} entries; up to {MAX_INPUTS} are allowed.", at=at
        )
    empty = next((index for index, one in enumerate(given) if not one), None)
    if empty is not None:
        raise InvalidRequest("The input is empty.", at=at.at(empty) if len(given) > 1 else at)
    return given


class NotStreamed:
    """The part of a Spelling that is for streams, of what has none."""

    def opening(self) -> bytes:
        """There are no streams."""
        return b""

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        """There are no streams."""
        return b""

    def closing(self) -> bytes:
        """There are no streams."""
        return b""

    def failure(self, body: bytes) -> bytes:
        """There are no streams."""
        return b""


class EmbeddingSpelling(NotStreamed):
    """Spells embeddings as OpenAI's list; Mistral's client wants an id, too."""

    def __init__(
        self, service: ChatService, answer: Answer, model: str, *, as_base64: bool
    ) -> None:
        self.id = f"embd-{answer.id}"
        self._answer = answer
        self._model = model
        self._as_base64 = as_base64

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The whole answer, in the order of the inputs."""
        tokens = self._answer.usage.prompt_tokens
        data = [
            {"object": "embedding", "index": index, "embedding": self._vector(raw)}
            for index, raw in sorted(self._answer.embeddings.items())
        ]
        return {
            "id": self.id,
            "object": "list",
            "created": self._answer.created,
            "model": self._model,
            "data": data,
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        }

    def _vector(self, raw: bytes) -> str | tuple[float, ...]:
        if self._as_base64:
            return base64.b64encode(raw).decode()
        return struct.unpack(f"<{len(raw) // 4}f", raw)

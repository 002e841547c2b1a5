"""A reranker's score: how likely it says yes, of what is behind the final norm.

A reranker has a matrix for it (architectures/classifier.py). The original Qwen3-Reranker is a chat
model, which is asked for "yes" or "no": its score are the logits of these two tokens.
"""

from __future__ import annotations

import decimal
import math

import numpy as np
from numpy.typing import NDArray

from maestrale.engines.base import Task
from maestrale.engines.cpu.decoder import Decoder
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.errors import ModelError
from maestrale.models.prepared import PreparedModel
from maestrale.models.vocabulary import Vocabulary

ARCHITECTURES = frozenset({"qwen3"})  # whose chat models are asked for yes or no
YES, NO = b"yes", b"no"
_CONTEXT = decimal.Context(prec=20)
_FAR = 1000.0  # beyond it the score is 0 or 1 in any precision


class Scorer:
    """Scores hidden rows by a vector, and a number added to the product.

    Sums and exponentials are rounded once, so they have the same bits on every machine, whatever
    its libraries.
    """

    def __init__(
        self,
        yes: NDArray[np.float32],
        no: NDArray[np.float32] | None = None,
        bias: float = 0.0,
    ) -> None:
        """`yes`, `no`: their rows [hidden]. The probability of yes among both depends on their
        difference alone.
        """
        self._weights = yes.astype(np.float64)
        if no is not None:
            self._weights = self._weights - no.astype(np.float64)
        self._bias = bias

    def __call__(self, row: NDArray[np.float32]) -> float:
        """From 0 to 1; not a number where the row isn't of numbers."""
        products = row.astype(np.float64) * self._weights
        if not np.isfinite(products).all():
            return math.nan
        return sigmoid(math.fsum((*products.tolist(), self._bias)))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), rounded to the nearest."""
    shrunk = _CONTEXT.exp(decimal.Decimal(-min(abs(x), _FAR)))
    part = shrunk if x < 0 else decimal.Decimal(1)
    return float(_CONTEXT.divide(part, _CONTEXT.add(decimal.Decimal(1), shrunk)))


def check_reranker(
    task: Task, spec: DecoderSpec, prepared: PreparedModel, vocabulary: Vocabulary
) -> None:
    """Whether a model that shall rerank can. Raises: ModelError."""
    if task != "rerank":
        return
    if spec.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{prepared.name} is no reranker: its architecture is {spec.architecture}. Served are "
            "Qwen3-Reranker and what is made like it: as GGUF with llama.cpp's pooling_type 4, as "
            "Qwen3ForSequenceClassification, or as the original with --task rerank. Leave out "
            "--task rerank, or take one of these."
        )
    if prepared.pooling is None:
        _answers(prepared.name, vocabulary)


def scorer_of(decoder: Decoder, prepared: PreparedModel, vocabulary: Vocabulary) -> Scorer:
    """The scorer of a loaded reranker. Raises: ModelError."""
    classifier = decoder.classifier
    if classifier is None:
        yes, no = (decoder.logits_row(token) for token in _answers(prepared.name, vocabulary))
        return Scorer(yes, no)
    rows, biases, index = classifier
    if len(rows) == 1:
        return Scorer(rows[0], bias=float(biases[0]))
    other = 1 - index
    return Scorer(rows[index], rows[other], float(biases[index]) - float(biases[other]))


def _answers(name: str, vocabulary: Vocabulary) -> tuple[int, int]:
    """The tokens of yes and no. Raises: ModelError where there are none."""
    try:
        return vocabulary.token_bytes.index(YES), vocabulary.token_bytes.index(NO)
    except ValueError as error:
        raise ModelError(
            f"{name} can't rerank: its vocabulary has no tokens for yes and no. Leave out --task "
            "rerank, or take a reranker, such as Qwen3-Reranker."
        ) from error

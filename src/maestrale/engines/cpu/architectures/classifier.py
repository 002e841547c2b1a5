"""A reranker's last matrix: where it lies, and which of its rows says that a document fits.

It has one row (a score), or two called yes and no. In GGUF it is llama.cpp's `cls.output`, in a
folder transformers' `score`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maestrale.engines.cpu.keys import Keys
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.roles import Rows, Vector
from maestrale.engines.cpu.weights.source import WeightSource
from maestrale.models.pooling import is_reranker

RANK = 4  # llama.cpp's pooling_type
# Those of which llama.cpp takes the last token; of others the first, which has seen no other.
GGUF_ARCHITECTURES = frozenset({"qwen3"})
_LABELS = "classifier.output_labels"
_YES_NO = ["no", "yes"]


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A matrix [1 or 2, hidden], its bias, and of two rows the one that is for yes."""

    weight: Rows
    bias: Vector | None
    yes: int = 0


def find_classifier(source: WeightSource, spec: DecoderSpec) -> Classifier | None:
    """What a reranker has behind its final norm; None where the model is none.

    Raises: ModelError for one that isn't served.
    """
    keys = source.keys
    if source.kind == "gguf":
        if keys.find("pooling_type") != RANK:
            return None
        if source.architecture not in GGUF_ARCHITECTURES:
            raise keys.wrong("pooling_type", "is 4 (rank), which is served of qwen3 alone")
        return _find(source, spec, "cls.output", keys.find(_LABELS), _LABELS)
    if not is_reranker({"architectures": keys.find("architectures")}):
        return None
    _check_score(keys)
    names = keys.find("id2label")
    listed = None
    if isinstance(names, Mapping):
        listed = [names[key] for key in sorted(names, key=str)]
    return _find(source, spec, "score", listed, "id2label")


def _find(
    source: WeightSource, spec: DecoderSpec, tensor: str, labels: Any, key: str
) -> Classifier:
    name, bias = f"{tensor}.weight", f"{tensor}.bias"
    shape = source.take(name).shape
    rows = math.prod(shape[:-1])
    yes = _yes(source.keys, labels, rows, key)
    source.matrix(name, (rows, spec.hidden), *([(spec.hidden,)] if rows == 1 else []))
    has_bias = source.has(bias)
    if has_bias:
        source.take(bias, (rows,))
    return Classifier(
        weight=Rows(name, rows, spec.hidden),
        bias=Vector(bias, rows) if has_bias else None,
        yes=yes,
    )


def _yes(keys: Keys, labels: Any, rows: int, key: str) -> int:
    """Which of the rows is for yes. Raises: ModelError for other rows than a reranker's."""
    if rows == 1:
        return 0
    named = [str(each).lower() for each in labels] if isinstance(labels, Sequence) else []
    if rows != 2 or sorted(named) != _YES_NO:
        said = ", ".join(named)[:60] or "nothing"
        raise keys.wrong(
            key,
            f"names {said} for a classifier of {rows} labels, which isn't served: a reranker has "
            "one, or yes and no",
        )
    return named.index("yes")


def _check_score(keys: Keys) -> None:
    """A score is a probability; sentence-transformers' files may ask for another thing."""
    keys.must_be("problem_type", "single_label_classification")
    keys.must_be("sbert_ce_default_activation_function", *_SIGMOIDS)
    own = keys.below("sentence_transformers")
    if own is not None:
        own.must_be("activation_fn", *_SIGMOIDS)
        own.ignore("version")
        own.refuse_unread()


_SIGMOIDS = ("torch.nn.modules.activation.Sigmoid", "torch.nn.Sigmoid")

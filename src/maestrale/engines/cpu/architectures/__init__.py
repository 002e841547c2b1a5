"""Families of architectures: from a model's metadata and tensors to what the kernel computes.

A new family is one file here and one line in `FAMILIES`.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass, fields, replace

from maestrale.engines.cpu.architectures import config, gguf
from maestrale.engines.cpu.architectures.classifier import Classifier, find_classifier
from maestrale.engines.cpu.architectures.family import Family, Form
from maestrale.engines.cpu.architectures.gemma import GEMMA2, GEMMA3
from maestrale.engines.cpu.architectures.gpt_oss import GPT_OSS
from maestrale.engines.cpu.architectures.granite import GRANITE
from maestrale.engines.cpu.architectures.layers import find_roles, left_over
from maestrale.engines.cpu.architectures.llama import LLAMA, MIXTRAL
from maestrale.engines.cpu.architectures.olmo import OLMO2
from maestrale.engines.cpu.architectures.phi import PHI3
from maestrale.engines.cpu.architectures.qwen import QWEN2, QWEN3
from maestrale.engines.cpu.architectures.refused import refusal
from maestrale.engines.cpu.architectures.smollm3 import SMOLLM3
from maestrale.engines.cpu.spec import DecoderSpec, MatrixShape
from maestrale.engines.cpu.weights.roles import Roles, Rows
from maestrale.engines.cpu.weights.source import WeightSource
from maestrale.errors import ModelError

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MIXTRAL,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3,
    PHI3,
    SMOLLM3,
    GRANITE,
    OLMO2,
    GPT_OSS,
)
_GGUF = {name: family.gguf for family in FAMILIES for name in family.gguf.names}
_FOLDER = {name: family.folder for family in FAMILIES for name in family.folder.names}


@dataclass(frozen=True)
class DescribedModel:
    """A model that can be loaded: what it computes, and where its weights lie.

    `classifier`: of a reranker.
    """

    spec: DecoderSpec
    roles: Roles
    source: WeightSource
    classifier: Classifier | None = None


def form_of(kind: str, architecture: str, where: str) -> Form:
    """The family of an architecture, in a format. Raises: ModelError where it isn't served."""
    known = _GGUF if kind == "gguf" else _FOLDER
    form = known.get(architecture)
    if form is None:
        raise refusal(where, architecture, sorted(known))
    return form


def describe(source: WeightSource) -> DescribedModel:
    """Read a model's metadata and tensor table to the end.

    Raises: ModelError for what is missing, damaged, unknown or not served, by name.
    """
    form = form_of(source.kind, source.architecture, str(source.path))
    try:
        spec = form.spec(source)
    except (ArithmeticError, ValueError, struct.error) as error:
        raise _impossible(source) from error
    _check(source, spec)
    naming = form.naming(source, spec)
    roles = find_roles(source, spec, naming)
    classifier = find_classifier(source, spec)
    common = gguf.HARMLESS if source.kind == "gguf" else config.harmless(source.keys)
    source.keys.refuse_unread(common | form.harmless)
    left = left_over(source, naming)
    if left:
        raise ModelError(
            f"{source.path} has the tensor {left[0]!r}, which isn't known here in a model of the "
            f"architecture {source.architecture!r} and may change what it computes, so it is not "
            "served. A newer maestrale may know it."
        )
    complete = replace(
        spec,
        tied=roles.logits is None,
        matrices=_shapes(source, roles),
        vector_elements=sum(vector.size for vector in roles.vectors()),
        notes=tuple(source.notes),
    )
    return DescribedModel(complete, roles, source, classifier)


def _check(source: WeightSource, spec: DecoderSpec) -> None:
    """Refuse shapes that no decoder has, before anything is computed with them."""
    if spec.heads % spec.kv_heads:
        raise ModelError(
            f"{source.path} is damaged or mislabelled: {spec.heads} heads can't share "
            f"{spec.kv_heads} heads of keys and values."
        )
    numbers = [getattr(spec, field.name) for field in fields(spec) if field.type == "float"]
    # A negative number to the power of a half is complex.
    if any(isinstance(each, complex) or not math.isfinite(each) for each in numbers):
        raise _impossible(source)
    if spec.norm_epsilon < 0 or not spec.attention_scale:
        raise _impossible(source)


def _impossible(source: WeightSource) -> ModelError:
    return ModelError(
        f"{source.path}: what it says of its scales, or of the rotary embedding (rope), gives "
        "numbers that can't be. The file is damaged; download it again."
    )


def _shapes(source: WeightSource, roles: Roles) -> tuple[MatrixShape, ...]:
    def shape(rows: Rows) -> MatrixShape:
        kind = "MXFP4" if rows.scales else source.tensors[rows.tensor].type
        return MatrixShape(kind, rows.rows, rows.columns)

    counted = Counter(shape(rows) for rows in roles.matrices())
    return tuple(replace(each, count=count) for each, count in counted.items())

"""The prompt that asks a model for what stands between two texts, spelled in token ids.

The marks are control tokens (models/fim_tokens.py), put in by id: no text can spell them. Most
models were trained with prefix, suffix and then the answer; Mistral's have the suffix first and
go on from the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence

from maestrale.models.fim_tokens import FimMarks


def around_gap(
    marks: FimMarks, *, begin: Sequence[int], prefix: Sequence[int], suffix: Sequence[int]
) -> tuple[int, ...]:
    """The prompt of two encoded texts; `begin` is what every text of the model begins with."""
    if marks.middle is None:
        return (*begin, marks.suffix, *suffix, marks.prefix, *prefix)
    return (*begin, marks.prefix, *prefix, marks.suffix, *suffix, marks.middle)

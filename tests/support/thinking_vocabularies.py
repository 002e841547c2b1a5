"""Small vocabularies with the marks of thoughts, a token for each byte, and what they may say."""

from __future__ import annotations

from maestrale.engines.base import Constraint
from maestrale.engines.constraint import compile_constraint
from maestrale.models.vocabulary import Vocabulary

EOS = 256
BYTES = tuple(bytes([value]) for value in range(256))
PLAIN = Vocabulary((*BYTES, b""), {"</s>": EOS}, (EOS,))
TOKENS = Vocabulary((*BYTES, b"", b"<think>", b"</think>"), {"</s>": EOS}, (EOS,))
MISTRAL = Vocabulary(
    (*BYTES, b"", b"", b""), {"</s>": EOS, "[THINK]": 257, "[/THINK]": 258}, (EOS,)
)


def takes(constraint: Constraint | None, vocabulary: Vocabulary, tokens: list[int]) -> bool:
    """Whether this may be all of an answer."""
    assert constraint is not None
    state = compile_constraint(constraint, vocabulary)
    for token in tokens:
        if state.finished or not state.allowed()[token]:
            return False
        state.accept(token)
    return state.finished or bool(state.allowed()[EOS])

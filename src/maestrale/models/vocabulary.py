"""The bytes of every token: what decoding, logprobs and grammars are built on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """`token_bytes[id]` is what the token spells (b"" for control tokens).

    `control_ids` maps a control token's name (`<|im_end|>`, `</s>`) to its id. Concatenated
    bytes of a sequence are UTF-8 once complete; a single token may end inside a character.
    `leading_space` tells that the tokenizer writes a space before a text's first word
    (SentencePiece), which decoding takes off again.
    """

    token_bytes: tuple[bytes, ...]
    control_ids: dict[str, int]
    eos_token_ids: tuple[int, ...]
    leading_space: bool = False

    def __len__(self) -> int:
        return len(self.token_bytes)

"""The bytes of every token: what decoding, logprobs and grammars are built on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from maestrale.errors import ModelError

BYTE_EOS = 256  # of `byte_vocabulary`


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


@cache
def byte_of_character() -> dict[str, int]:
    """The 256 characters that stand for bytes: printable Latin-1 for itself, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if chr(byte) not in table]
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


def decode_byte_level(piece: str) -> bytes:
    """The bytes that a vocabulary entry spells; one with other characters spells itself."""
    table = byte_of_character()
    try:
        return bytes([table[character] for character in piece])
    except KeyError:
        return piece.encode()


VOCABULARY_FILE = "vocabulary.msgpack"


def save_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    (folder / VOCABULARY_FILE).write_bytes(msgspec.msgpack.encode(vocabulary))


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a prepared model: one entry for each row of its logits.

    Raises: ModelError when the folder holds none, or a damaged one.
    """
    path = folder / VOCABULARY_FILE
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Vocabulary)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{folder} is not a prepared model: its vocabulary can't be read ({error}). "
            "Delete the folder; it will be made anew."
        ) from error


def byte_vocabulary() -> Vocabulary:
    """The vocabulary where there is no model's: 256 bytes, and 256 ends the text."""
    token_bytes = (*(bytes([value]) for value in range(256)), b"")
    return Vocabulary(token_bytes, {"</s>": BYTE_EOS}, (BYTE_EOS,))

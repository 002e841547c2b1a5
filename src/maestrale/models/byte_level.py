"""GPT-2's way to write bytes as printable characters, which byte-level BPE vocabularies use."""

from __future__ import annotations

from functools import cache


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

"""Text in files that people write, and files' names: UTF-8 as a rule, but not always."""

from __future__ import annotations

import codecs
import os
from typing import TypeVar

Data = TypeVar("Data", bytes, bytearray, bytes | bytearray)
BOM = codecs.BOM_UTF8
_OTHERS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def without_bom(data: Data) -> Data:
    """Windows' editors and PowerShell put a mark before UTF-8; it is no part of the text."""
    return data.removeprefix(BOM)


def readable(name: str) -> str:
    """A file's name, which may hold any bytes, as text that can be sent and kept."""
    return os.fsencode(name).decode(errors="replace")


def decode_text(data: bytes) -> str:
    """The text of a file. Raises: ValueError that says what it is instead, as a sentence."""
    for mark, name in _OTHERS.items():
        if data.startswith(mark):
            raise ValueError(
                f"it is {name}, as Windows writes it by default; save it as UTF-8 (in PowerShell: "
                "Out-File -Encoding utf8)."
            )
    try:
        return without_bom(data).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start}).") from error

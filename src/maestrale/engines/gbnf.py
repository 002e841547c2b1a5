"""llama.cpp's grammars (GBNF) as llguidance's form of Lark."""

from __future__ import annotations

import re

from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_ESCAPE = re.compile(r"\\\\|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\x([0-9a-fA-F]{2})")
_MARKS = frozenset('"\\[]^-/\x7f')  # these keep their escape: they would end or change something
_HEADER = "%llguidance {}"


def is_gbnf(grammar: str) -> bool:
    """Whether a grammar is written as llama.cpp's are, with `::=`."""
    return _RULE.search(grammar) is not None


def lark_of(grammar: str) -> str:
    """The same grammar in Lark. Raises: ValueError where it is malformed; RecursionError."""
    try:
        written: str = gbnf_to_lark(_ESCAPE.sub(_character, grammar))
    except (IndexError, GbnfToLarkError, UnicodeError) as error:
        raise ValueError(_said(error)) from error
    except RecursionError:
        raise
    except Exception as error:  # of the library's own, for rules that are missing or there twice
        raise ValueError(_said(error)) from error
    return written.removeprefix(_HEADER).lstrip("\n")


def _character(match: re.Match[str]) -> str:
    """A character that an escape names, as itself where it can stand so."""
    code = match[1] or match[2] or match[3]
    if code is None:
        return match[0]
    value = int(code, 16)
    if value > 0x10FFFF or 0xD800 <= value < 0xE000:
        raise ValueError(f"{match[0]} is no character")
    character = chr(value)
    if value < 0x20 or character in _MARKS:
        return f"\\x{value:02x}"
    return character


def _said(error: Exception) -> str:
    if isinstance(error, IndexError):
        return "it ends within an escape"
    return str(error)[:200]

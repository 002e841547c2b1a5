"""Regular expressions for JSON's strings: lengths, patterns, formats, and keys.

Text in quotes is spelled in one way only, so that a key that is named elsewhere can't come back
in other letters (`"\\u0061"` is `"a"`). Patterns are ECMA 262's; what llguidance's expressions
don't know of them is rewritten, or refused by name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from llguidance import regex_to_lark

from maestrale.engines.schema.formats import FORMATS
from maestrale.engines.schema.trial import has_text

PLAIN = r'[^"\\\x00-\x1f\x7f]'  # what stands for itself in quotes
_CHARACTER = rf'(?:{PLAIN}|\\["\\bfnrt])'


@dataclass(frozen=True)
class Strings:
    """Strings by their length in characters; patterns are searched for, formats hold for all."""

    low: int = 0
    high: int | None = None
    patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()

    def merge(self, other: Strings) -> Strings:
        """What both allow."""
        highs = [high for high in (self.high, other.high) if high is not None]
        return Strings(
            max(self.low, other.low),
            min(highs, default=None),
            tuple(dict.fromkeys(self.patterns + other.patterns)),
            tuple(dict.fromkeys(self.formats + other.formats)),
        )

    @property
    def empty(self) -> bool:
        return self.high is not None and self.low > self.high

    def accepts(self, value: str) -> bool:
        """Raises: ValueError for a pattern that can't be tried."""
        if len(value) < self.low or (self.high is not None and len(value) > self.high):
            return False
        if not all(re.fullmatch(FORMATS[name], value) for name in self.formats):
            return False
        return all(matches(pattern, value) for pattern in self.patterns)

    @property
    def simple(self) -> bool:
        """llguidance's own JSON schema can hold the patterns, escapes and all."""
        return not self.formats and not any(map(_looks_around, self.patterns))

    def schema(self) -> dict[str, object]:
        """For what is simple and has patterns."""
        schema: dict[str, object] = {"type": "string", "minLength": self.low}
        if self.high is not None:
            schema["maxLength"] = self.high
        parts = [{"pattern": normal(pattern)} for pattern in self.patterns]
        return {**schema, **parts[0], "allOf": parts[1:]} if parts[1:] else {**schema, **parts[0]}

    def expression(self) -> str:
        """A Lark expression. With patterns and formats, of text that needs no escapes."""
        bounds = f"{{{self.low},{'' if self.high is None else self.high}}}"
        if not self.patterns and not self.formats:
            return f'/"{_CHARACTER}{bounds}"/'
        return f'"\\"" ({self.text()}) "\\""'

    def text(self) -> str:
        """What stands between the quotes: plain text alone."""
        bounds = f"{{{self.low},{'' if self.high is None else self.high}}}"
        parts = [f"({search(pattern)})" for pattern in self.patterns]
        parts += [f"/{regex_to_lark(FORMATS[name], use_ascii='')}/" for name in self.formats]
        return " & ".join([f"/{PLAIN}{bounds}/", *parts])


def some_text(strings: Strings) -> bool:
    """Whether any string is among them. Raises: ValueError for a pattern that can't be used."""
    if strings.empty:
        return False
    for pattern in strings.patterns:  # each by itself, so that the right one is named
        alone = Strings(patterns=(pattern,))
        simple = alone.simple
        try:
            has_text(f"%json {json.dumps(alone.schema())}" if simple else alone.expression())
        except ValueError as error:
            if str(error).startswith("the pattern"):
                raise
            raise ValueError(f"the pattern {_short(pattern)} can't be used: {error}") from error
    if strings.patterns and strings.simple:
        return has_text(f"%json {json.dumps(strings.schema())}")
    return not (strings.patterns or strings.formats) or has_text(strings.expression())


def matches(pattern: str, value: str) -> bool:
    """Whether the pattern is found in a text. Raises: ValueError where that can't be said."""
    try:
        return re.search(pattern, value) is not None
    except (re.error, RecursionError) as error:
        raise ValueError(f"the pattern {_short(pattern)} is not understood: {error}") from error


def literal(text: str) -> str:
    """A Lark expression for this very text."""
    return json.dumps(text, ensure_ascii=False)


# A piece of a pattern: an escape, a class, a group's opening, or one character.
_ESCAPE = (
    r"\\(?:u\{[0-9a-fA-F]+\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|c[a-zA-Z]|[pP]\{[^}]*\}|k<[^>]*>|.)"
)
_PIECE = re.compile(
    rf"{_ESCAPE}|\[(?:{_ESCAPE}|[^\]\\])*\]|\((?:\?(?:[:=!]|<[=!]|<[A-Za-z_]\w*>))?|.", re.DOTALL
)
_IN_CLASS = re.compile(rf"{_ESCAPE}|.", re.DOTALL)
_LOOK = ("(?=", "(?!")
_ANY = "(?s:.*)"
_MOST_WAYS = 1000


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:60] + "…")


def _unknown(pattern: str, what: str) -> ValueError:
    return ValueError(f"the pattern {_short(pattern)} {what}, which can't be enforced")


# What ECMA's validators and those that take letters of all scripts for letters agree on.
_LETTERS = r"\p{L}\p{M}\p{N}\p{Pc}\p{Alphabetic}"
_AGREED = {
    "s": r"[ \t\n\r\x0b\x0c]",
    "S": r"[^\s\x{feff}\x1c-\x1f]",
    "W": rf"[^{_LETTERS}]",
    "D": r"[^\p{N}]",
}
_SETS = (r"\s", r"\w", r"\d")
_AGREED_NOT = {  # in a class of all others
    "w": _LETTERS,
    "d": r"\p{N}",
    "s": r"\s\x{feff}\x1c-\x1f",
    "S": r"[^ \t\n\r\x0b\x0c]",
}


def _pieces(pattern: str) -> list[str]:
    """The pattern in pieces, each as llguidance writes it. Raises: ValueError."""
    pieces: list[str] = []
    for found in _PIECE.finditer(pattern):
        piece = found.group()
        if piece[0] == "\\":
            piece = _escape(piece, pattern)
        elif piece == "[":
            raise ValueError(f"the pattern {_short(pattern)} has an unclosed class")
        elif piece[0] == "[":
            piece = _class(piece, pattern)
        elif piece == ".":
            piece = r"[^\n\r\x{2028}\x{2029}]"
        elif piece.startswith("(?<"):
            if piece[3:4] in "=!":
                raise _unknown(pattern, "looks behind")
            piece = "(?:"
        elif piece == "?" and pieces and _quantifies(pieces):
            continue  # lazy: the same texts
        pieces.append(piece)
    return pieces


def _class(piece: str, pattern: str) -> str:
    """A class without what only llguidance's expressions take for operators."""
    first = 2 if piece[1] == "^" else 1
    if first == 1 and any(
        {both, both.upper()} <= set(re.findall(_ESCAPE, piece)) for both in _SETS
    ):
        return r"[\x01-\x{10ffff}]"  # as `[\s\S]`, which means all
    inner, last = "", ""
    for found in _IN_CLASS.finditer(piece[first:-1]):
        part = found.group()
        if part[0] == "\\":
            part = _escape(part, pattern, inside="not" if first == 2 else "class")
        elif part in "[&~" or (part == "-" and last == "-"):
            part = "\\" + part
        inner, last = inner + part, part
    if not inner:
        raise _unknown(pattern, "has an empty class")
    made = piece[:first] + inner + "]"
    # llguidance quotes a class of all control characters as if quotes were in it, too; with one
    # fewer it doesn't.
    return f"[{made}--\\x00]" if first == 2 or "-" in inner or "[^" in inner else made


def _quantifies(pieces: list[str]) -> bool:
    last = pieces[-1]
    if last in ("*", "+", "?"):
        return True
    if last != "}":
        return False
    tail = "".join(pieces[-12:])
    return re.search(r"\{[0-9]+(,[0-9]*)?\}$", tail) is not None


def _escape(piece: str, pattern: str, inside: str = "") -> str:
    if len(piece) < 2:
        raise ValueError(f"the pattern {_short(pattern)} ends in a backslash")
    kind = piece[1]
    if kind == "c":
        return f"\\x{ord(piece[2]) % 32:02x}"
    if kind == "0":
        return "\\x00"
    if kind in "bB" and not inside:
        raise _unknown(pattern, "asks for the edge of a word")
    if kind == "b":
        return "\\x08"
    if (kind.isdigit() or kind == "k") and not inside:
        raise _unknown(pattern, "refers back to a group")
    if kind in "dDwWsSnrtfvpPux":
        return (_AGREED_NOT if inside == "not" else _AGREED).get(kind, piece)
    if kind.isascii() and kind.isalpha():
        raise _unknown(pattern, f"has the escape \\{kind}, which ECMA doesn't know")
    # An escape of what needs none is the character itself.
    return re.escape(kind) if kind in r".*+?^$|(){}[]\-&~#/" else kind


def normal(pattern: str) -> str:
    """The pattern as llguidance's expressions have it. Raises: ValueError."""
    return "".join(_pieces(pattern))


def _looks_around(pattern: str) -> bool:
    return any(piece in _LOOK for piece in _pieces(pattern))


def search(pattern: str) -> str:
    """A Lark expression for all texts in which the pattern is found.

    Raises: ValueError, also where an anchor or a look ahead is repeated, or nothing can match it.
    """
    return _Search(pattern).ways(_pieces(pattern), _ANY)


class _Search:
    """Puts the expression of one pattern together, of so many ways at most."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._left = _MOST_WAYS

    def ways(self, pieces: list[str], before: str) -> str:
        return " | ".join(self._way(way, before, start=True) for way in _split(pieces))

    def _way(self, pieces: list[str], before: str, *, start: bool) -> str:
        """Texts of `before`, all pieces, and then anything. `start`: nothing comes before those.

        What a look ahead says holds for all that follows it to the end of the text, so the pieces
        behind it are put into each way of a group that has one.
        """
        self._left -= 1
        if self._left < 0:
            raise _unknown(self._pattern, "has too many ways around its anchors and looks ahead")
        at = _first_special(pieces)
        body = regex_to_lark("".join(pieces[:at]), use_ascii="dw")
        if at == len(pieces):
            return f"/{before}(?:{body}){_ANY}/"
        special, rest = pieces[at], pieces[at + 1 :]
        if special == "$" and not rest:
            return f"/{before}(?:{body})/"
        if special == "^" and start and at == 0:
            return self._way(rest, "", start=True)
        if special in "^$":
            raise _unknown(self._pattern, "has an anchor in the middle")
        end = _closing(pieces, at, self._pattern)
        inner, rest = pieces[at + 1 : end], pieces[end + 1 :]
        if special in _LOOK:
            ahead = self.ways(inner, "")
            ahead = f"({ahead})" if special == "(?=" else f"~({ahead})"
            following = (
                f"({ahead} & ({self._way(rest, '', start=start and not before and not at)}))"
            )
            return f"/{before}(?:{body})/ {following}" if before or at else following
        ways = _split(inner)
        if rest[:1] == ["?"]:
            ways, rest = [*ways, []], rest[1:]
        elif rest and rest[0] in "*+{":
            raise _unknown(self._pattern, "repeats an anchor or a look ahead")
        found = [self._way(pieces[:at] + way + rest, before, start=start) for way in ways]
        return "(" + " | ".join(found) + ")"


def _first_special(pieces: list[str]) -> int:
    """Where the first anchor, look ahead, or group with one is (classes are one piece each)."""
    opened: list[int] = []
    for index, piece in enumerate(pieces):
        if piece in ("^", "$", *_LOOK):
            return opened[0] if opened else index
        if piece[0] == "(":
            opened.append(index)
        elif piece == ")" and opened:
            opened.pop()
    return len(pieces)


def _split(pieces: list[str]) -> list[list[str]]:
    """At the `|` of the outermost level."""
    ways: list[list[str]] = [[]]
    depth = 0
    for piece in pieces:
        depth += (piece[0] == "(") - (piece == ")")
        if piece == "|" and depth == 0:
            ways.append([])
        else:
            ways[-1].append(piece)
    return ways


def _closing(pieces: list[str], start: int, pattern: str) -> int:
    depth = 0
    for index in range(start, len(pieces)):
        depth += (pieces[index][0] == "(") - (pieces[index] == ")")
        if not depth:
            return index
    raise ValueError(f"the pattern {_short(pattern)} has an unclosed group")

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

from maestrale.engines.schema.trial import has_text

PLAIN = r'[^"\\\x00-\x1f\x7f]'  # what stands for itself in quotes
_CHARACTER = rf'(?:{PLAIN}|\\["\\bfnrt])'

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|(?:[0-9]{{2}}{_LEAP}|{_LEAP}00)-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
_LOCAL = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,9})?)?"
_ZONE = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_H = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    [f"(?:{_H}:){{7}}{_H}", f"(?:{_H}:){{1,7}}:", f":(?::{_H}){{1,7}}", "::"]
    + [f"(?:{_H}:){{1,{7 - more}}}(?::{_H}){{1,{more}}}" for more in range(1, 7)]
)
# Of networks those whose edge is a point, so that all bits behind it are 0.
_NETWORK4 = "|".join(
    [rf"(?:{_OCTET}\.){{{at}}}0(?:\.0){{{3 - at}}}/{8 * at}" for at in range(4)] + [f"{_IPV4}/32"]
)
_NETWORK6 = "|".join([f"(?:{_H}:){{{at}}}:/{16 * at}" for at in range(1, 8)] + [f"(?:{_IPV6})/128"])
_LABEL = "[a-zA-Z0-9](?:-?[a-zA-Z0-9]){0,31}"  # "--" is for names that Punycode encodes
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,8}}"
_ATOM = r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,64}"
_PCHAR = r"(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_QUERY = rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"
_AFTER = rf"(?:/{_PCHAR}*)*{_QUERY}"
_PATH = rf"(?:/|/?(?:[a-zA-Z0-9._~!$&'()*+,;=@-]|%[0-9a-fA-F]{{2}})+(?:/{_PCHAR}*)*)?"
_AUTHORITY = rf"(?:{_HOST}|\[(?:{_IPV6})\])(?::[0-9]{{1,4}})?"
_N = "[0-9]{1,9}"
_DURATION_DATE = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_DURATION_TIME = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_POINTER = r'(?:/(?:[^"\\/~\x00-\x1f\x7f]|~[01])*)*'
FORMATS = {
    "base64": "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
    "base64url": "[A-Za-z0-9_-]*",
    "cidrv4": f"{_IPV4}/(?:3[0-2]|[12]?[0-9])",
    "cidrv6": f"(?:{_IPV6})/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])",
    "cuid": "c[a-z0-9]{24}",
    "cuid2": "[a-z][a-z0-9]{23}",
    "date": _DATE,
    "date-time": f"{_DATE}T{_CLOCK}{_ZONE}",
    "date-time-local": f"{_DATE}T{_LOCAL}",
    "duration": f"P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|[0-9]{{1,9}}W)",
    "e164": r"\+[1-9][0-9]{6,14}",
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,3}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "json-pointer": r"(?:/(?:[^\"\\/~\x00-\x1f\x7f]|~[01])*)*",
    "jwt": r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*",
    "nanoid": "[A-Za-z0-9_-]{21}",
    "relative-json-pointer": rf"(?:0|[1-9][0-9]{{0,8}})(?:#|{_POINTER})",
    "ksuid": "[0-9A-Za-z]{27}",
    "mac": "(?:[0-9A-F]{2}:){5}[0-9A-F]{2}",
    "time": f"{_CLOCK}{_ZONE}",
    "time-local": _LOCAL,
    "ulid": "[0-7][0-9A-HJKMNP-TV-Z]{25}",
    "uri": rf"[a-zA-Z][a-zA-Z0-9+.-]{{0,30}}:(?://{_AUTHORITY}{_AFTER}|{_PCHAR}+{_AFTER})",
    "uri-reference": rf"//{_AUTHORITY}{_AFTER}|{_PATH}{_QUERY}",
    "uri-template": rf"(?:{_PCHAR}|[/?]|\{{[a-zA-Z0-9_]+\}})*",
    "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "xid": "[0-9a-v]{20}",
}
FORMATS |= {
    "byte": FORMATS["base64"],
    "idn-email": FORMATS["email"],
    "idn-hostname": FORMATS["hostname"],
    "iri": FORMATS["uri"],
    "iri-reference": FORMATS["uri-reference"],
    "ipv4interface": FORMATS["cidrv4"],
    "ipv4network": _NETWORK4,
    "ipv6interface": FORMATS["cidrv6"],
    "ipv6network": _NETWORK6,
    "ipvanyaddress": f"{_IPV4}|{_IPV6}",
    "ipvanyinterface": f"{FORMATS['cidrv4']}|{FORMATS['cidrv6']}",
    "ipvanynetwork": f"{_NETWORK4}|{_NETWORK6}",
    "multi-host-uri": FORMATS["uri"],
    "url": FORMATS["uri"],
}
FORMATS |= {
    f"uuid{version}": rf"[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-"
    r"[0-9a-f]{12}"
    for version in range(1, 9)
}
LONGEST = {"hostname": 253, "idn-hostname": 253}
# What these say is for people and forms, or can't be seen from the text.
FREE_FORMATS = frozenset(
    {"binary", "color", "directory-path", "emoji", "enum", "file-path", "html", "json-string"}
    | {"markdown", "password", "path", "phone", "text", "textarea"}
)


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
_MOST_WAYS = 64


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
    return _ways(_pieces(pattern), pattern, anchored=False)


def _ways(pieces: list[str], pattern: str, *, anchored: bool) -> str:
    before = "" if anchored else _ANY
    ways = [_way(way, pattern, before, start=True) for way in _split(pieces)]
    if len(ways) > _MOST_WAYS:
        raise _unknown(pattern, "has too many alternatives around anchors and looks ahead")
    return " | ".join(ways)


def _way(pieces: list[str], pattern: str, before: str, *, start: bool) -> str:
    """Texts of `before`, all pieces, and then anything. `start`: nothing comes before those.

    What a look ahead says holds for all that follows it to the end of the text, so the pieces
    behind it are put into each way of a group that has one.
    """
    at = _first_special(pieces)
    body = regex_to_lark("".join(pieces[:at]), use_ascii="dw")
    if at == len(pieces):
        return f"/{before}(?:{body}){_ANY}/"
    special, rest = pieces[at], pieces[at + 1 :]
    if special == "$" and not rest:
        return f"/{before}(?:{body})/"
    if special == "^" and start and at == 0:
        return _way(rest, pattern, "", start=True)
    if special in "^$":
        raise _unknown(pattern, "has an anchor in the middle")
    end = _closing(pieces, at, pattern)
    inner, rest = pieces[at + 1 : end], pieces[end + 1 :]
    if special in _LOOK:
        ahead = _ways(inner, pattern, anchored=True)
        ahead = f"({ahead})" if special == "(?=" else f"~({ahead})"
        following = (
            f"({ahead} & ({_way(rest, pattern, '', start=start and not before and not at)}))"
        )
        return f"/{before}(?:{body})/ {following}" if before or at else following
    ways = _split(inner)
    if rest[:1] == ["?"]:
        ways, rest = [*ways, []], rest[1:]
    elif rest and rest[0] in "*+{":
        raise _unknown(pattern, "repeats an anchor or a look ahead")
    found = [_way(pieces[:at] + way + rest, pattern, before, start=start) for way in ways]
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

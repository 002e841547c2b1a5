"""The one cleaner of text for a terminal.

What a server, a model, another machine or a file's name says is shown through it, in every
command, also where the output is piped: it mostly ends on a terminal after all. A control
character or an escape sequence could clear the screen, forge lines or fill the clipboard; an
override of the direction of writing shows other words than are there.
"""

from __future__ import annotations

import re

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_HARMFUL = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but tab and newline
    "\u2028\u2029"  # line ends that are not seen as such
    "\u202a-\u202e\u2066-\u2069"  # embeddings, overrides and isolates of direction
    "\ud800-\udfff"  # halves of a character: bytes of a path that are no UTF-8
    "]"
)

_END = r"\s/'\"`:;,()<>\[\]"
_PATH = re.compile(
    r"(?<![\w.:/~-])"  # in the middle of a name or a URL it is none
    rf"(?:(?:~|\.\.?)/|/(?=[^{_END}]+/))(?:[^{_END}]*/)*([^{_END}]*)"
)


def printable(text: str) -> str:
    """`text` with all that could harm a terminal, or deceive its reader, replaced by U+FFFD."""
    if text.isprintable():
        return text
    return _HARMFUL.sub(REPLACEMENT, text)


def printable_json(text: str) -> str:
    """The same for a JSON document, which keeps its meaning: escaped, as JSON allows."""
    return _HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def without_folders(text: str, *paths: str) -> str:
    """Each path in a text by its last part alone, for those whom the folders don't concern.

    `paths`: those that may stand in it, also with spaces.
    """
    for path in sorted(filter(None, paths), key=len, reverse=True):
        text = text.replace(path, path.rstrip("/").rpartition("/")[2])
    return _PATH.sub(r"\1", text)


def one_line(text: str) -> str:
    """Control characters (CR and LF among them) escaped, so that no one can forge a line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def brief(text: str, most: int = 500) -> str:
    """On one line and no longer than `most`, for a message that quotes it; printable."""
    # Only as much is looked at as can be shown: it may be megabytes.
    words = " ".join(text[: 8 * most].split())
    return printable(words if len(words) <= most else f"{words[:most]}\N{HORIZONTAL ELLIPSIS}")

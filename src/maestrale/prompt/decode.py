"""Token ids → text, as they come: never half a character, never a part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence

from maestrale.errors import InvalidRequest, Location
from maestrale.models.vocabulary import Vocabulary


class IncrementalDecoder:
    """Spells tokens as they come; a character is given when its last byte is there.

    Control tokens spell nothing. Bytes that can't become a character are shown as U+FFFD;
    an unfinished character at the end is left out. `continuing` tells that the tokens go on
    from text: then a SentencePiece model's first space is a real one and stays. `shown` spells
    some control tokens after all (those that mark tool calls).
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        continuing: bool = False,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._token_bytes = vocabulary.token_bytes
        self._shown = {token: text.encode() for token, text in (shown or {}).items()}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = vocabulary.leading_space and not continuing

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete, possibly none."""
        spelled = b"".join(self._shown.get(token) or self._token_bytes[token] for token in ids)
        if self._drop_space and spelled:
            spelled = spelled.removeprefix(b" ")
            self._drop_space = False
        return self._decoder.decode(spelled)

    def flush(self) -> str:
        """End of the tokens: the text that was still held back.

        Only an unfinished character is ever held back, so this is empty; its bytes are dropped.
        """
        self._decoder.reset()
        return ""


class StopStrings:
    """Finds the first stop string in text that comes in pieces.

    The stop string whose last character comes first wins (of those that end together, the
    longest), so the result doesn't depend on how the text is cut. Held back is only what may
    still turn out to be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises: ValueError when a stop string is empty."""
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = [_Matcher(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Text that is safe to send, and the stop string found. After a match: nothing more."""
        if self._matched is not None:
            return "", self._matched
        for index, character in enumerate(text):
            for matcher in self._stops:
                if matcher.advance(character):
                    self._matched = matcher.stop
                    seen = self._held + text[: index + 1]
                    self._held = ""
                    return seen[: len(seen) - len(matcher.stop)], matcher.stop
        seen = self._held + text
        safe = len(seen) - max((matcher.length for matcher in self._stops), default=0)
        self._held = seen[safe:]
        return seen[:safe], None

    def flush(self) -> str:
        """End of the text: what was held back and is no stop string after all."""
        held, self._held = self._held, ""
        return held


class _Matcher:
    """Knuth-Morris-Pratt: `length` characters of `stop` match the end of what was seen."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        self._fallback = [0] * len(stop)
        for index in range(1, len(stop)):
            length = self._fallback[index - 1]
            while length and stop[index] != stop[length]:
                length = self._fallback[length - 1]
            self._fallback[index] = length + (stop[index] == stop[length])

    def advance(self, character: str) -> bool:
        """Take one more character; True when `stop` is now complete."""
        while self.length and self.stop[self.length] != character:
            self.length = self._fallback[self.length - 1]
        if self.stop[self.length] == character:
            self.length += 1
        return self.length == len(self.stop)


def spell(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    """All of these tokens as a person reads them, control tokens by their names.

    Raises: InvalidRequest for an id outside the vocabulary.
    """
    outside = next((token for token in ids if not 0 <= token < len(vocabulary)), None)
    if outside is not None:
        raise InvalidRequest(
            f"{outside} is no token: ids go from 0 to {len(vocabulary) - 1}.", at=Location("tokens")
        )
    names = {token: name for name, token in vocabulary.control_ids.items()}
    parts: list[str] = []
    plain: list[bytes] = []
    first = True  # of the plain text: where SentencePiece's space is not the writer's
    for token in [*ids, None]:
        if token is not None and token not in names:
            plain.append(vocabulary.token_bytes[token])
            continue
        if plain:
            spelled = b"".join(plain)
            if vocabulary.leading_space and first:
                spelled = spelled.removeprefix(b" ")
            parts.append(spelled.decode("utf-8", "replace"))
            plain, first = [], False
        if token is not None:
            parts.append(names[token])
    return "".join(parts)

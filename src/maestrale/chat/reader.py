"""One choice of an answer as it is read: token ids → thoughts, text, calls and log-probabilities.

    tokens ──► decode ──► thoughts apart ──► calls apart ──► stop strings ──► a Piece

Each stage holds back what it can't tell yet: half a character, half a tag, half a call, half a
stop string. All of it follows from the tokens alone, so a replay gives the same pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from maestrale.chat.options import Options
from maestrale.engines.base import FinishReason, GenerationRequest, TokenDelta, TokenLogprob
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.decode import IncrementalDecoder, StopStrings
from maestrale.prompt.messages import ToolCall
from maestrale.prompt.reasoning.base import ReasoningFormat, ReasoningParser
from maestrale.prompt.tools.base import ToolFormat
from maestrale.prompt.tools.reading import ToolCallParser

AnswerFinish = FinishReason | Literal["calls"]  # it ended with calls of tools


class LogprobEntry(Struct, frozen=True):
    """The log-probability of one token, spelled out; None for a prompt's first.

    `text_offset` is where the token begins in the answer, in characters. `top` holds
    (token id, logprob), most likely first.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    text_offset: int


class Piece(Struct):
    """What became ready of one choice; the last piece of a choice has a `finish_reason`.

    `reasoning` is what the model thought, and comes before `text`. `stopped_by` is the stop
    string that ended it, if one did. `token_ids`, where they were asked for, are all that were
    generated since the piece before; text of theirs may still be held back. `used`: tokens of its
    choice up to it, and those of thoughts among them.
    """

    index: int
    text: str
    logprobs: list[LogprobEntry]
    finish_reason: AnswerFinish | None
    calls: tuple[ToolCall, ...] = ()
    stopped_by: str | None = None
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    used: tuple[int, int] = (0, 0)


class Formats(Struct, frozen=True):
    """How the model writes what is no text. None: it isn't looked for.

    `opened`: the prompt ends within a thought.
    """

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    opened: bool = False


class ChoiceReader:
    """Reads one choice. `generated` counts its tokens, `reasoning_tokens` those of thoughts."""

    def __init__(
        self,
        index: int,
        request: GenerationRequest,
        vocabulary: Vocabulary,
        options: Options,
        formats: Formats,
        *,
        lead: str,
        continues: bool,
    ) -> None:
        """`lead` is what the choice begins with; `continues`: it goes on from text."""
        self.generated = 0
        self.reasoning_tokens = 0
        self.finish: FinishReason | None = None
        self._index = index
        self._request, self._vocabulary, self._options = request, vocabulary, options
        self._tools = _tool_parser(request, options, formats.tools)
        self._reasoning: ReasoningParser | None = None
        shown: dict[int, str] = {}
        if formats.reasoning is not None:
            shown |= formats.reasoning.shown
            self._reasoning = formats.reasoning.parser(
                opened=formats.opened, calls=self._tools is not None
            )
        if self._tools is not None and formats.tools is not None:
            shown |= formats.tools.shown
        self._decoder = IncrementalDecoder(vocabulary, continuing=continues, shown=shown)
        self._stops = StopStrings(options.stop) if options.stop else None
        control = vocabulary.control_ids
        # A control token has no text: as a stop string it is found by its id.
        self._named_stops = {control[stop]: stop for stop in options.stop if stop in control}
        self._ids: list[int] = []  # not told yet, where they are asked for
        self._text = lead
        self._offset = len(lead)  # characters given out, or not held back any more
        self._begun = False
        self._ledger: _LogprobLedger | None = None
        if request.logprobs is not None:
            self._ledger = _LogprobLedger(self._decoder, vocabulary, with_end=options.echo)
            self._ledger.offset = self._offset

    def take_prompt(self, logprobs: Sequence[TokenLogprob]) -> None:
        """The prompt's log-probabilities, for an answer that begins with it."""
        if self._ledger is not None and self._options.echo:
            self._ledger.begin_with(_of_prompt(self._request, logprobs, self._vocabulary))

    def push(self, delta: TokenDelta) -> Piece | None:
        """Take tokens; what became ready, if anything did."""
        self.generated += len(delta.token_ids)
        if self._options.token_ids:
            self._ids += delta.token_ids
        self.finish = delta.finish_reason
        reasoning, fresh = self._spell(delta)
        last = self.finish is not None
        calls: tuple[ToolCall, ...] = ()
        if self._tools is not None:
            parsed = self._tools.push(fresh, last=last, cut=self.finish == "length")
            fresh, calls = parsed.text, parsed.calls
            self._offset += parsed.taken
            if self._tools.done:
                self.finish = "stop"
        matched = None
        if self._stops is not None and self.generated > self._request.min_tokens:
            fresh, matched = self._stops.push(fresh)
            if matched is not None:
                self.finish = "stop"
                fresh += matched if self._options.include_stop else ""
            elif self.finish is not None:
                fresh += self._stops.flush()
        self._text += fresh
        self._offset += len(fresh)
        entries: list[LogprobEntry] = []
        if self._ledger is not None:
            everything = self.finish is not None and not matched
            entries = self._ledger.take(self._offset, everything=everything)
        if self.finish is not None:
            if matched is None and self.finish == "stop" and delta.token_ids:
                matched = self._named_stops.get(delta.token_ids[-1])
                if matched is not None and self._options.include_stop:
                    self._text += matched
            called = self.finish == "stop" and self._tools is not None and self._tools.called
            ended: AnswerFinish = "calls" if called else self.finish
            ids = self._told_ids() if self._ids else ()
            return Piece(self._index, self._text, entries, ended, calls, matched, reasoning, ids)
        # Where much may be held back, the first piece tells that work has begun.
        parses = self._tools is not None or self._reasoning is not None
        ready = self._text or reasoning or entries or calls or self._ids
        if not ready and (self._begun or not parses):
            return None
        self._begun = True
        text, self._text = self._text, ""
        ids = self._told_ids() if self._ids else ()
        return Piece(self._index, text, entries, None, calls, None, reasoning, ids)

    def _told_ids(self) -> tuple[int, ...]:
        told, self._ids = tuple(self._ids), []
        return told

    def _spell(self, delta: TokenDelta) -> tuple[str, str]:
        """The delta's thoughts, and the text that is none."""
        last = delta.finish_reason is not None
        if self._reasoning is None:
            text = self._decode(delta.token_ids, delta.logprobs or (), delta.finish_reason)
            return "", text + (self._decoder.flush() if last else "")
        thoughts, texts = "", ""
        for place, token in enumerate(delta.token_ids):
            ends = place == len(delta.token_ids) - 1
            entries = (delta.logprobs or ())[place : place + 1]
            fresh = self._decode((token,), entries, delta.finish_reason if ends else None)
            was_thinking = self._reasoning.thinking
            part = self._reasoning.push(fresh)
            self.reasoning_tokens += was_thinking and self._reasoning.thinking
            thoughts, texts = thoughts + part.reasoning, texts + part.text
            self._offset += part.taken
        if last:
            part = self._reasoning.push(self._decoder.flush(), last=True)
            thoughts, texts = thoughts + part.reasoning, texts + part.text
            self._offset += part.taken
        return thoughts, texts

    def _decode(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprob],
        finish: FinishReason | None,
    ) -> str:
        if self._ledger is None:
            return self._decoder.push(tokens)
        return self._ledger.push(tokens, logprobs, finish == "stop")


def _tool_parser(
    request: GenerationRequest, options: Options, form: ToolFormat | None
) -> ToolCallParser | None:
    """Finds the calls in one choice; their ids follow from the request alone."""
    use = options.tools
    if use is None or form is None:
        return None
    key = hashlib.blake2b(repr((request.seed, request.prompt)).encode()).digest()
    return form.parser(use.reader(key), parallel=use.parallel)


def _of_prompt(
    request: GenerationRequest, logprobs: Sequence[TokenLogprob], vocabulary: Vocabulary
) -> list[LogprobEntry]:
    """The prompt's tokens as entries of an answer that begins with it."""
    decoder = IncrementalDecoder(vocabulary)
    entries, offset = [LogprobEntry(request.prompt[0], None, (), 0)], 0
    for before, entry in zip(request.prompt, logprobs, strict=False):
        offset += len(decoder.push((before,)))
        entries.append(LogprobEntry(entry.token_id, entry.logprob, entry.top, offset))
    return entries


class _LogprobLedger:
    """Holds each token's log-probability back until its text is out.

    So that no part of a stop string is given away by the logprobs either.
    """

    def __init__(
        self, decoder: IncrementalDecoder, vocabulary: Vocabulary, *, with_end: bool
    ) -> None:
        """`with_end`: the end-of-sequence token has an entry as well."""
        self.offset = 0
        self._with_end = with_end
        self._decoder = decoder
        self._token_bytes = vocabulary.token_bytes
        self._held: list[LogprobEntry] = []

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], stopped: bool
    ) -> str:
        text = ""
        for position, token_id in enumerate(token_ids):
            # The end-of-sequence token counts, but is no part of the answer.
            ends = stopped and position == len(token_ids) - 1 and not self._token_bytes[token_id]
            if position < len(logprobs) and (self._with_end or not ends):
                entry = logprobs[position]
                self._held.append(LogprobEntry(token_id, entry.logprob, entry.top, self.offset))
            fresh = self._decoder.push((token_id,))
            self.offset += len(fresh)
            text += fresh
        return text

    def begin_with(self, entries: Sequence[LogprobEntry]) -> None:
        """Entries that come before the first generated token's."""
        self._held[:0] = entries

    def take(self, released: int, *, everything: bool) -> list[LogprobEntry]:
        """The entries of tokens that begin before character `released`, in order."""
        if everything:
            ready, self._held = self._held, []
            return ready
        count = 0
        while count < len(self._held) and self._held[count].text_offset < released:
            count += 1
        ready, self._held = self._held[:count], self._held[count:]
        return ready

"""The ledger: every request in flight, and the tokens already given for it.

When an engine dies, the requests in it are run again, there or elsewhere. Each must first give
the k tokens that the client already has; they are compared, not sent. What follows is new and
goes on to the client, who sees a pause and then exactly what it would have seen.

A request that kills engines must not take the others along for ever, and one that is only there
when an engine dies must not be blamed. What decides is progress. Each request has a mark: how
far it ever came, tokens of the prompt that were read and tokens that were given, again or anew.
An engine's life in which it passed its mark says nothing against it. After two lives in a row in
which it did not, it is a suspect, and suspects are run one at a time. One that passes its mark is
cleared; one that ends at the same place in two trials is refused. A death that was brought from
outside, by somebody's SIGKILL, is evidence against nobody.

Where nobody came past its mark in two lives, all that is replayed may take longer than an engine
lives: then half as many run at once, and twice as many as soon as those have passed their marks.

Nothing here touches a process or a clock: who owns the engines says when they are up or down,
and passes on what they say. `SupervisedEngine` has one, `cluster.Dispatcher` has many.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from maestrale.engines.base import EngineInfo, GenerationRequest, TokenDelta
from maestrale.engines.mailbox import Mailbox
from maestrale.errors import EngineError, MaestraleError, ReplayMismatch

LIVES_BEFORE_TRIAL = 2

logger = logging.getLogger(__name__)


@dataclass
class LedgerCounters:
    """What happened since the server started."""

    restarts: int = 0
    replayed: int = 0
    mismatched: int = 0
    refused: int = 0


class Entry:
    """One request in flight, and what has been given for it."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.mailbox = Mailbox()
        self.wire_id: str | None = None  # of its present run; never used again
        self.fingerprint = ""  # of the engine that gave the tokens
        self.runs = 0
        self.position = 0  # how far its present run, or else its last one, came
        self.moved = False  # the present run passed the mark
        self.strikes = 0  # deaths in a row of engines in which it did not pass its mark
        self.ended_at: int | None = None  # the position at which the engine died at its last trial
        self._mark = 0
        self._given: list[int] = []
        self._matched = 0  # of those, how many this run has given again

    @property
    def begun(self) -> bool:
        """Whether the client has tokens of it."""
        return bool(self._given)

    @property
    def suspect(self) -> bool:
        return self.strikes >= LIVES_BEFORE_TRIAL

    def submission(self, wire_id: str, info: EngineInfo) -> GenerationRequest:
        """The request as the engine shall run it now.

        Raises: ReplayMismatch when this engine would not go on as the last one did.
        """
        if self.begun and info.fingerprint != self.fingerprint:
            raise ReplayMismatch(
                "The engine that began this answer stopped, and the one in its place is not the "
                f"same (fingerprint {info.fingerprint}, was {self.fingerprint}), so it can't go on "
                "with it. Send the request again."
            )
        self.wire_id, self.fingerprint = wire_id, info.fingerprint
        self._matched, self.position, self.moved = 0, 0, False
        request = replace(self.request, request_id=wire_id)
        if "deterministic" in info.features or len(self._given) <= len(request.forced):
            return request
        return replace(request, forced=tuple(self._given))

    def receive(self, delta: TokenDelta) -> TokenDelta | None:
        """What of this delta the client doesn't have yet, if anything.

        Raises: ReplayMismatch when the part that it has is not the same again.
        """
        known = min(len(self._given) - self._matched, len(delta.token_ids))
        again = delta.token_ids[:known]
        if list(again) != self._given[self._matched : self._matched + known]:
            raise ReplayMismatch(_CHANGED)
        self._matched += known
        if delta.finish_reason is not None and self._matched < len(self._given):
            raise ReplayMismatch(_CHANGED)
        new = delta.token_ids[known:]
        first = not self._given
        self._given += new
        self._matched += len(new)
        self._advance(delta.prefilled)
        if not new and delta.finish_reason is None:
            return None
        return TokenDelta(
            new,
            delta.finish_reason,
            None if delta.logprobs is None else delta.logprobs[known:],
            delta.cached_tokens if first else 0,
            delta.waited if first else 0.0,
            delta.prompt_logprobs if first else None,
            embedding=delta.embedding,
        )

    def _advance(self, prefilled: int) -> None:
        prompt = len(self.request.prompt)
        read = prompt if self._matched else min(prefilled, prompt)
        self.position = max(self.position, read + self._matched)
        if self.position > self._mark:
            self._mark, self.moved = self.position, True


_CHANGED = (
    "The engine stopped during this answer, and its successor gave other tokens than those "
    "already sent, so the answer can't be completed. Send the request again."
)
_REFUSED = (
    "The engine stopped each time that it ran this request, also with nothing else running, so "
    "the request is refused. Other requests go on."
)


class Engines(Protocol):
    """Where requests run."""

    def engine_for(self, entry: Entry) -> EngineInfo | None:
        """The kind of engine that takes this request now; None: it has to wait for one."""

    def submit(self, request: GenerationRequest) -> None:
        """Run it. Raises: EngineError when it can't be sent."""

    def abort(self, wire_id: str) -> None:
        """Nobody waits for this run any more."""

    def released(self, wire_id: str) -> None:
        """This run came to its end by itself."""


class Ledger:
    """All requests in flight; decides which of them are run now."""

    def __init__(self, engines: Engines, *, single: bool, prefix: str = "") -> None:
        """`single`: there is one engine, and a suspect has it to itself; else suspects run one at
        a time, beside the others. `prefix` begins each wire id.
        """
        self.counters = LedgerCounters()
        self._engines = engines
        self._single = single
        self._prefix = prefix
        self._entries: dict[int, Entry] = {}  # by id(), in order of arrival
        self._running: dict[str, Entry] = {}  # by wire id
        self._submissions = 0
        self._suspects: list[Entry] = []  # to be tried one by one
        self._on_trial: Entry | None = None
        self._at_most: int | None = None  # so many run at once
        self._barren_lives = 0  # of the engine, in a row, in which no request passed its mark
        self.progress = False
        """Since the last death of an engine a request passed its mark, or came to its end."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    @property
    def running(self) -> int:
        """How many requests were given to engines."""
        return len(self._running)

    @property
    def trying_suspects(self) -> bool:
        return self._on_trial is not None or bool(self._suspects)

    def entry(self, wire_id: str) -> Entry:
        """The request of this run."""
        return self._running[wire_id]

    # Requests come and go

    def open(self, request: GenerationRequest) -> Entry:
        """Take in a request; it runs now, or as soon as it may.

        Raises: EngineError when it can't be sent to the engine.
        """
        entry = Entry(request)
        self._entries[id(entry)] = entry
        if self._may_run(entry):
            try:
                self._submit(entry)
            except EngineError:
                self._forget(entry)
                raise
        return entry

    def close(self, entry: Entry) -> None:
        """Its reader is gone: no engine works on it any more."""
        if id(entry) in self._entries:
            self._take_out(entry)
            self._forget(entry)
            self._after(entry)

    def fail_all(self, error: MaestraleError) -> None:
        """End every request with `error`."""
        self._suspects, self._on_trial, self._at_most = [], None, None
        for entry in self:
            self._take_out(entry)
            self._forget(entry)
            entry.mailbox.fail(error)

    # Engines come and go

    def submit_waiting(self) -> None:
        """There may be an engine for what waits."""
        self._next_trial()
        for entry in self:
            waits = id(entry) in self._entries and entry.wire_id is None
            if waits and self._may_run(entry):
                self._submit_or_end(entry)

    def withdraw(self, wire_id: str) -> None:
        """This run never reached an engine; the request waits again."""
        entry = self._running.pop(wire_id, None)
        if entry is not None:
            entry.wire_id = None
            entry.runs -= 1
            self._not_on_trial(entry)

    def lost(self, wire_ids: Collection[str] | None = None, *, blamed: bool = True) -> bool:
        """An engine is gone, with these runs (None: all). They wait until `submit_waiting`.

        `blamed`: it died in its work, of which one of them may be the cause. Returns whether the
        death is to be counted against the engines: nobody made progress, nor is it put down to
        one request to spare others.
        """
        names = tuple(self._running) if wire_ids is None else wire_ids
        lost = [self._running.pop(wire) for wire in names if wire in self._running]
        for entry in lost:
            entry.wire_id = None
        moved = any(entry.moved for entry in lost)
        tried = self._on_trial if self._on_trial in lost else None
        progress = self.progress or moved
        if blamed or self._single:
            self.progress = False
        if moved:
            self._barren_lives = 0
        elif self._single and lost and tried is None:
            self._barren_lives += 1
            if self._barren_lives > 1:
                self._at_most = max(1, len(lost) // 2)
        others = len(self._entries) > 1
        if tried is not None:
            self._not_on_trial(tried)
        if blamed:
            for entry in lost:
                if not entry.moved:
                    self._strike(entry)
        if tried is not None and blamed and not tried.moved:
            self._judge(tried)
        return blamed and not progress and not (tried is not None and others)

    # What an engine says

    def delta(self, wire_id: str, delta: TokenDelta) -> None:
        entry = self._running.get(wire_id)
        if entry is None:
            return  # aborted meanwhile
        had_moved = entry.moved
        try:
            new = entry.receive(delta)
        except ReplayMismatch as error:
            logger.error("A replayed request gave other tokens than before; it ends in an error.")
            self.counters.mismatched += 1
            self._end(entry, error)
            return
        if new is not None:
            entry.mailbox.put(new)
        finished = delta.finish_reason is not None
        if finished:
            del self._running[wire_id]
            self._engines.released(wire_id)
            entry.wire_id = None
            self._forget(entry)
        elif entry.moved and not had_moved:
            entry.strikes, entry.ended_at = 0, None
        if finished or (entry.moved and not had_moved):
            self.progress = True
            self._after(entry)

    def failed(self, wire_id: str, error: MaestraleError) -> None:
        """The engine can't run this request, and goes on."""
        entry = self._running.pop(wire_id, None)
        if entry is not None:
            entry.wire_id = None
            self._engines.released(wire_id)
            self._end(entry, error)

    def end(self, entry: Entry, error: MaestraleError) -> None:
        """Nothing can be done for it any more."""
        if id(entry) in self._entries:
            self._end(entry, error)

    # Within

    def _may_run(self, entry: Entry) -> bool:
        if entry is self._on_trial:
            return True
        if entry.suspect or (self._single and self.trying_suspects):
            return False
        return self._at_most is None or len(self._running) < self._at_most

    def _submit_or_end(self, entry: Entry) -> None:
        try:
            self._submit(entry)
        except (EngineError, ReplayMismatch) as error:
            self._end(entry, error)

    def _submit(self, entry: Entry) -> None:
        """A wire id is used once, so that nothing late can be taken for a later run's."""
        info = self._engines.engine_for(entry)
        if info is None:
            return
        self._submissions += 1
        wire_id = f"{self._prefix}{entry.request.request_id}/{self._submissions}"
        request = entry.submission(wire_id, info)
        self._running[wire_id] = entry
        try:
            self._engines.submit(request)
        except EngineError:
            del self._running[wire_id]
            entry.wire_id = None
            raise
        self.counters.replayed += entry.runs > 0
        entry.runs += 1

    def _strike(self, entry: Entry) -> None:
        """The engine died with it, and it did not pass its mark."""
        entry.strikes += 1
        if entry.suspect and entry not in self._suspects:
            self._suspects.append(entry)

    def _judge(self, entry: Entry) -> None:
        """The engine died at its trial."""
        if entry.position == entry.ended_at:
            logger.error("A request stops the engine whenever it runs; it is refused.")
            self.counters.refused += 1
            self._end(entry, EngineError(_REFUSED))
        else:
            entry.ended_at = entry.position

    def _not_on_trial(self, entry: Entry) -> None:
        """Its trial came to no end: it is the next to be tried."""
        if entry is self._on_trial:
            self._on_trial = None
            self._suspects.insert(0, entry)

    def _take_out(self, entry: Entry) -> None:
        if entry.wire_id is not None:
            if self._running.pop(entry.wire_id, None) is not None:
                self._engines.abort(entry.wire_id)
            entry.wire_id = None

    def _forget(self, entry: Entry) -> None:
        self._entries.pop(id(entry), None)
        if entry in self._suspects:
            self._suspects.remove(entry)

    def _end(self, entry: Entry, error: MaestraleError) -> None:
        self._take_out(entry)
        self._forget(entry)
        entry.mailbox.fail(error)
        self._after(entry)

    def _after(self, entry: Entry) -> None:
        """It passed its mark, or is gone: others may run now that could not before."""
        if entry is self._on_trial:
            self._on_trial = None
            if self._suspects and self._single:
                self._take_out(entry)  # it goes on when all have been tried
        elif self._at_most is None:
            return
        if self._at_most is not None and all(one.moved for one in self._running.values()):
            self._at_most = 2 * self._at_most if self._at_most < len(self._entries) else None
        self.submit_waiting()

    def _next_trial(self) -> None:
        while self._on_trial is None:
            ready = (one for one in self._suspects if self._engines.engine_for(one) is not None)
            entry = next(ready, None)
            if entry is None:
                return
            self._suspects.remove(entry)
            self._on_trial = entry
            self._submit_or_end(entry)

"""The ledger: every request in flight, and the tokens already given for it.

When the engine process dies, its successor gets the same requests again. Each must first give
the k tokens that the client already has; they are compared, not sent. What follows is new and
goes on to the client, who sees a pause and then exactly what it would have seen.

A request that kills the engine by itself must not take the others along for ever. So when the
engine has died twice in a row without one new token for anybody, whatever was in it is a
suspect, and the suspects are run one at a time. One that gives a new token is cleared. One
that is alone in the engine at two deaths, with no token between them, is refused.

Nothing here touches a process or a clock: `SupervisedEngine` says when an engine is up or
down, and passes on what it says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from maestrale.engines.base import EngineInfo, GenerationRequest, TokenDelta
from maestrale.engines.mailbox import Mailbox
from maestrale.errors import EngineError, MaestraleError, ReplayMismatch

BARREN_DEATHS_BEFORE_TRIALS = 2
STRIKES = 2

logger = logging.getLogger(__name__)


@dataclass
class Counters:
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
        self.wire_id: str | None = None  # set while it is in the engine
        self.fingerprint = ""  # of the engine that gave the tokens
        self.strikes = 0
        self._given: list[int] = []
        self._matched = 0  # of those, how many this run has given again

    @property
    def begun(self) -> bool:
        """Whether the client has tokens of it."""
        return bool(self._given)

    def submission(self, wire_id: str, info: EngineInfo) -> GenerationRequest:
        """The request as the engine shall run it now.

        Raises: ReplayMismatch when this engine would not go on as the last one did.
        """
        self.wire_id = wire_id
        self._matched = 0
        if not self.begun:
            self.fingerprint = info.fingerprint
        elif info.fingerprint != self.fingerprint:
            raise ReplayMismatch(
                "The engine that began this answer stopped, and the one in its place is not the "
                f"same (fingerprint {info.fingerprint}, was {self.fingerprint}), so it can't go on "
                "with it. Send the request again."
            )
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
        if not new and delta.finish_reason is None:
            return None
        first = not self._given
        self._given += new
        self._matched += len(new)
        return TokenDelta(
            new,
            delta.finish_reason,
            None if delta.logprobs is None else delta.logprobs[known:],
            delta.cached_tokens if first else 0,
            delta.waited if first else 0.0,
            delta.prompt_logprobs if first else None,
        )


_CHANGED = (
    "The engine stopped during this answer, and its successor gave other tokens than those "
    "already sent, so the answer can't be completed. Send the request again."
)
_REFUSED = (
    "The engine stopped each time that it ran this request, also with nothing else running, so "
    "the request is refused. Other requests go on."
)


class Ledger:
    """All requests in flight; decides which of them the engine is given."""

    def __init__(
        self, submit: Callable[[GenerationRequest], None], abort: Callable[[str], None]
    ) -> None:
        """`submit` and `abort` talk to the present engine process."""
        self.counters = Counters()
        self._submit_to_engine = submit
        self._abort_in_engine = abort
        self._entries: dict[int, Entry] = {}  # by id(), in order of arrival
        self._in_engine: dict[str, Entry] = {}  # by wire id
        self._submissions = 0
        self._info: EngineInfo | None = None  # of the present engine; None: there is none
        self._progress = False  # a new token since the present engine is up
        self._barren_deaths = 0  # in a row, without progress
        self._suspects: list[Entry] = []  # in flight at the last death; to be tried one by one
        self._on_trial: Entry | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def in_engine(self) -> int:
        """How many requests the present engine works on."""
        return len(self._in_engine)

    @property
    def trying_suspects(self) -> bool:
        return self._on_trial is not None or self._barren_deaths >= BARREN_DEATHS_BEFORE_TRIALS

    # Requests come and go

    def open(self, request: GenerationRequest) -> Entry:
        """Take in a request; the engine gets it now, or as soon as there is one for it.

        Raises: EngineError when it can't be sent to the engine.
        """
        entry = Entry(request)
        self._entries[id(entry)] = entry
        if self._info is not None and not self.trying_suspects:
            try:
                self._submit(entry)
            except EngineError:
                self._forget(entry)
                raise
        return entry

    def close(self, entry: Entry) -> None:
        """Its reader is gone: the engine stops working on it."""
        if id(entry) in self._entries:
            self._take_out(entry)
            self._forget(entry)
            self._next_trial_after(entry)

    def fail_all(self, error: MaestraleError) -> None:
        """End every request with `error`."""
        for entry in tuple(self._entries.values()):
            self._take_out(entry)
            self._forget(entry)
            entry.mailbox.fail(error)
        self._suspects, self._on_trial, self._barren_deaths = [], None, 0

    # Engines come and go

    def engine_up(self, info: EngineInfo) -> None:
        """An engine is ready: give it what is in flight."""
        self._info = info
        self._progress = False
        if self.trying_suspects:
            self._next_trial()
        else:
            self._submit_all()

    def engine_down(self, *, try_suspects: bool = False) -> bool:
        """The engine died. True when the death is put down to one request, to spare others.

        `try_suspects`: it has died so often that suspects are tried whatever the progress.
        """
        was_in_engine = list(self._in_engine.values())
        for entry in was_in_engine:
            entry.wire_id = None
        self._in_engine.clear()
        self._info = None
        if self._on_trial is not None:
            entry, self._on_trial = self._on_trial, None
            others = len(self._entries) > 1
            entry.strikes += 1
            if entry.strikes >= STRIKES:
                logger.error("A request stops the engine whenever it runs; it is refused.")
                self.counters.refused += 1
                self._end(entry, EngineError(_REFUSED))
            else:
                self._suspects.insert(0, entry)
            return others
        if not was_in_engine:
            return False  # it died idle: no request had a part in it
        self._barren_deaths = 0 if self._progress else self._barren_deaths + 1
        if try_suspects:
            self._barren_deaths = BARREN_DEATHS_BEFORE_TRIALS
        self._suspects = was_in_engine
        return False

    # What the engine says

    def delta(self, wire_id: str, delta: TokenDelta) -> None:
        entry = self._in_engine.get(wire_id)
        if entry is None:
            return  # aborted meanwhile
        try:
            new = entry.receive(delta)
        except ReplayMismatch as error:
            logger.error("A replayed request gave other tokens than before; it ends in an error.")
            self.counters.mismatched += 1
            self._end(entry, error)
            return
        if new is None:
            return
        self._progress = True
        entry.strikes = 0
        entry.mailbox.put(new)
        if new.finish_reason is not None:
            del self._in_engine[wire_id]
            self._forget(entry)
        self._next_trial_after(entry)

    def failed(self, wire_id: str, error: MaestraleError) -> None:
        """The engine can't run this request, and goes on."""
        entry = self._in_engine.pop(wire_id, None)
        if entry is not None:
            entry.wire_id = None
            self._end(entry, error)

    # Within

    def _submit_all(self) -> None:
        for entry in tuple(self._entries.values()):
            if entry.wire_id is None:
                self._submit_or_end(entry)

    def _submit_or_end(self, entry: Entry) -> None:
        try:
            self._submit(entry)
        except EngineError as error:
            self._end(entry, error)

    def _submit(self, entry: Entry) -> None:
        """A wire id is used once, so that nothing late can be taken for a later run's."""
        assert self._info is not None
        self._submissions += 1
        wire_id = f"{entry.request.request_id}/{self._submissions}"
        again = bool(entry.fingerprint)
        self._submit_to_engine(entry.submission(wire_id, self._info))
        self._in_engine[wire_id] = entry
        self.counters.replayed += again

    def _take_out(self, entry: Entry) -> None:
        if entry.wire_id is not None:
            if self._in_engine.pop(entry.wire_id, None) is not None:
                self._abort_in_engine(entry.wire_id)
            entry.wire_id = None

    def _forget(self, entry: Entry) -> None:
        self._entries.pop(id(entry), None)
        if entry in self._suspects:
            self._suspects.remove(entry)

    def _end(self, entry: Entry, error: MaestraleError) -> None:
        self._take_out(entry)
        self._forget(entry)
        entry.mailbox.fail(error)
        self._next_trial_after(entry)

    def _next_trial_after(self, entry: Entry) -> None:
        """If `entry` was on trial it is over: cleared by a new token, ended, or gone."""
        if entry is self._on_trial:
            self._on_trial = None
            if self._suspects:
                self._take_out(entry)  # it goes on when all have been tried
            self._next_trial()

    def _next_trial(self) -> None:
        while self._suspects and self._on_trial is None:
            self._on_trial = entry = self._suspects.pop(0)
            self._submit_or_end(entry)
        if self._on_trial is None:
            self._barren_deaths = 0
            self._submit_all()

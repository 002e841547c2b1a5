"""Which models are in memory: the rules alone, without processes, clocks or waiting.

    requests ──arrived, left──►  Residency  ──decide──► [Load(id) | Unload(id), ...]
    processes ─loaded, failed, unloaded─►      ──horizon──► up to which request each model answers

A model is loaded when a request waits for it, or the operator says so, and unloaded once nothing
came for its `keep_alive`; pinned ones stay. All that are loaded fit in the budget together. Where
one more doesn't, those that are idle go first, the one unused for longest before the others; if
that isn't enough, busy ones close.

A model that closes answers what had come until then, and is unloaded after it; what comes later
waits until it is loaded again. So a model that was loaded always serves its queue first, none waits
for ever behind another that is asked without pause, and two that don't fit together change places
once for a queue, not once for a request.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

OPEN = math.inf
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a model that failed is loaded again

Place = Literal["unloaded", "loading", "loaded", "unloading"]


@dataclass(frozen=True, slots=True)
class Load:
    """Load this model now; `loaded` or `failed` tells what came of it."""

    id: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload this model now, for this reason; `unloaded` tells when that is done."""

    id: str
    why: str


Action = Load | Unload


@dataclass(slots=True)
class _Model:
    id: str
    size: int
    pinned: bool
    keep_alive: float | None  # seconds; None: for ever
    place: Place = "unloaded"
    closing: bool = False
    answered: set[int] = field(default_factory=set)
    """Requests that it answers while it is loaded, by number."""
    held: deque[tuple[int, float]] = field(default_factory=deque)
    """(number, time) of requests that wait for it to be loaded, in order."""
    called: float | None = None  # since when the operator wants it loaded
    dismissed: bool = False  # the operator wants it unloaded
    last_used: float = 0.0
    failures: int = 0
    retry_at: float = 0.0

    @property
    def idle(self) -> bool:
        return self.place == "loaded" and not self.answered

    @property
    def since(self) -> float | None:
        """Since when somebody waits for it to be loaded."""
        times = [time for _, time in list(self.held)[:1]]
        if self.called is not None:
            times.append(self.called)
        return min(times, default=None)

    def open(self) -> None:
        """All that waits is answered from now on, and what comes later."""
        self.closing = False
        self.answered.update(number for number, _ in self.held)
        self.held.clear()


class Residency:
    """The models of one server. Times are seconds of any clock that doesn't go back."""

    def __init__(self, budget: int | None) -> None:
        """`budget`: bytes that loaded models may take together; None: without bound."""
        self.budget = budget
        self._models: dict[str, _Model] = {}

    def add(self, id_: str, size: int, *, pinned: bool, keep_alive: float | None) -> None:
        """One more model, not loaded. See `room`."""
        self._models[id_] = _Model(id_, size, pinned, keep_alive)

    def remove(self, id_: str) -> None:
        """It is none of the server's any more; nothing of it is in memory."""
        del self._models[id_]

    def room(self, *, pinned: bool = False) -> float:
        """Bytes that a model may take beside all that are pinned; one that is pinned itself leaves
        room for the largest of the others, too.
        """
        if self.budget is None:
            return OPEN
        stay = sum(each.size for each in self._models.values() if each.pinned)
        others = (each.size for each in self._models.values() if not each.pinned)
        return self.budget - stay - (max(others, default=0) if pinned else 0)

    # What happens

    def arrived(self, id_: str, number: int, now: float) -> bool:
        """A request came, with a number above all earlier ones of this model.

        Returns whether `decide` must be asked: the model doesn't answer it yet.
        """
        model = self._models[id_]
        model.last_used = max(model.last_used, now)
        if model.place == "loaded" and not model.closing and not model.dismissed:
            model.answered.add(number)
            return False
        model.held.append((number, now))
        return True

    def left(self, id_: str, number: int, now: float) -> bool:
        """A request has its answer, or its client has left.

        Returns whether `decide` must be asked: the model may have become idle.
        """
        model = self._models[id_]
        model.last_used = max(model.last_used, now)
        if number in model.answered:
            model.answered.remove(number)
            return not model.answered
        model.held = deque(each for each in model.held if each[0] != number)
        return True

    def call(self, id_: str, now: float) -> None:
        """The operator wants it loaded."""
        model = self._models[id_]
        model.dismissed = False
        model.retry_at = min(model.retry_at, now)
        if model.place != "loaded" and model.called is None:
            model.called = now

    def dismiss(self, id_: str) -> bool:
        """The operator wants it unloaded. Returns whether that can be: nothing is in work."""
        model = self._models[id_]
        if model.answered or model.held or model.place == "loading":
            return False
        model.called = None
        model.dismissed = model.place == "loaded"
        return True

    def loaded(self, id_: str, now: float) -> None:
        """It answers now, asked for or not: all that waits for it comes first."""
        model = self._models[id_]
        model.place, model.called, model.failures = "loaded", None, 0
        model.last_used = max(model.last_used, now)
        model.open()

    def failed(self, id_: str, now: float) -> float:
        """It can't be loaded. Returns the seconds before it is tried again.

        Who waits for it is still held: the caller ends those requests.
        """
        model = self._models[id_]
        model.place, model.called = "unloaded", None
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(model.failures, 30))
        model.failures += 1
        model.retry_at = now + pause
        if model.pinned:
            model.called = now
        return pause

    def unloaded(self, id_: str) -> None:
        """Its memory is free."""
        model = self._models[id_]
        model.place, model.closing, model.dismissed = "unloaded", False, False

    # What follows

    def horizon(self, id_: str) -> float:
        """Up to which number its requests may go on to its engine."""
        model = self._models[id_]
        if model.place != "loaded":
            return -OPEN
        return max(model.answered, default=-OPEN) if model.closing else OPEN

    def place(self, id_: str) -> Place:
        """Where it is."""
        return self._models[id_].place

    def decide(self, now: float) -> list[Action]:
        """What is to be done now. It counts as begun: the next call doesn't say it again."""
        actions: list[Action] = [*self._unload_idle(now), *self._unload_surplus()]
        closing = {each.id for each in self._models.values() if each.closing}
        still: set[str] = set()
        for model in sorted(self._waiting(now), key=lambda each: (each.since or 0.0, each.id)):
            if model.size <= self._free():
                model.place = "loading"
                actions.append(Load(model.id))
                continue
            # First come, first loaded: a large one isn't overtaken by small ones for ever.
            victims = self._victims(model)
            still = {each.id for each in victims}
            for victim in victims:
                if victim.idle:
                    actions.append(self._unload(victim, f"to make room for {model.id}"))
                else:
                    victim.closing = True
            break
        for id_ in closing - still:
            reopened = self._models[id_]
            if reopened.place == "loaded":
                reopened.open()
        return actions

    def wake_at(self, now: float) -> float | None:
        """When `decide` must be asked although nothing happened; None: not before something does.

        What could be done at `now` was done.
        """
        times = [
            each.last_used + each.keep_alive
            for each in self._models.values()
            if each.idle and not each.pinned and each.keep_alive is not None
        ]
        times += [
            each.retry_at
            for each in self._models.values()
            if each.place == "unloaded" and each.since is not None and each.retry_at > now
        ]
        return min(times, default=None)

    # Within

    def _waiting(self, now: float) -> Iterator[_Model]:
        for each in self._models.values():
            if each.place == "unloaded" and each.since is not None and each.retry_at <= now:
                yield each

    def _unload_idle(self, now: float) -> Iterator[Action]:
        for each in self._models.values():
            if not each.idle:
                continue
            if each.dismissed:
                yield self._unload(each, "as the operator asked")
            elif (
                not each.pinned
                and each.keep_alive is not None
                and now >= each.last_used + each.keep_alive
            ):
                yield self._unload(each, f"unused for {each.keep_alive:g} s")

    def _unload_surplus(self) -> Iterator[Action]:
        """Of what was loaded unasked and doesn't fit together, the newest first."""
        idle = [each for each in self._models.values() if each.idle and not each.pinned]
        for each in sorted(idle, key=lambda each: each.last_used, reverse=True):
            going = (one.size for one in self._models.values() if one.place == "unloading")
            if self._free() + sum(going) >= 0:
                return
            yield self._unload(each, "it doesn't fit beside the others")

    @staticmethod
    def _unload(model: _Model, why: str) -> Unload:
        model.place, model.closing, model.dismissed = "unloading", False, False
        return Unload(model.id, why)

    def _free(self) -> float:
        if self.budget is None:
            return OPEN
        held = (each.size for each in self._models.values() if each.place != "unloaded")
        return self.budget - sum(held)

    def _victims(self, model: _Model) -> list[_Model]:
        """Those that must go for this one, beside what is going already; none if nothing helps."""
        lack = model.size - self._free()
        lack -= sum(each.size for each in self._models.values() if each.place == "unloading")
        candidates = [
            each for each in self._models.values() if each.place == "loaded" and not each.pinned
        ]
        candidates.sort(key=lambda each: (not each.idle, not each.closing, each.last_used))
        chosen: list[_Model] = []
        for each in candidates:
            if lack <= 0:
                break
            chosen.append(each)
            lack -= each.size
        if lack > 0:  # what is loading now may go later: until then nothing else needs to
            return []
        for each in list(chosen):
            if lack + each.size <= 0:  # a larger one after it was enough
                chosen.remove(each)
                lack += each.size
        return chosen

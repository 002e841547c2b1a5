"""How much of a step the sequences of each key get: equal parts of its time, not of its rows.

Many rows of one key make a step long, and whoever has a single row in it waits for them all. So
where sequences of several keys run, none adds more to a step than the smallest of them would take
alone: with two keys no one is slowed to less than half of what it would have by itself. Who has
more rows than that gets them in turn, a part of them in each step. What a row costs is measured:
its part of the model's time, and the time to choose its token, which a grammar may make long.

What each key may spend is counted over the steps (deficit round robin,
https://dl.acm.org/doi/10.1145/217391.217453): what is left over is carried on, for rows that cost
more than one step's part, and what a row took beyond what was expected is a debt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from maestrale.engines.cpu.sequence import ScheduledSequence

FORGET = 0.98  # of earlier steps, at each measured one
LEARN = 0.25  # of what a token's choice took, at each one
ROUNDING = 1e-9  # of sums that should be whole
MOST_PREFILL = 80  # tokens of a prompt that count as wanted in one step


class StepCost:
    """The model's seconds for a step: so many, and so many more for each token."""

    def __init__(self) -> None:
        # Until steps of different sizes were measured: of a model of a billion weights.
        self.fixed, self.token = 0.05, 0.005
        self._weight = self._n = self._t = self._nn = self._nt = 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        """Take a measured step into account."""
        parts = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        sums = (self._weight, self._n, self._t, self._nn, self._nt)
        self._weight, self._n, self._t, self._nn, self._nt = (
            FORGET * total + part for total, part in zip(sums, parts, strict=True)
        )
        mean, time = self._n / self._weight, self._t / self._weight
        spread = self._nn / self._weight - mean * mean
        if spread > 1:
            slope = (self._nt / self._weight - mean * time) / spread
            self.token = min(max(slope, time / mean / 100), time / mean)
        else:
            self.token = time / (10 + mean)
        self.fixed = time - self.token * mean


class Shares:
    """What the sequences of each key may spend of the steps, in seconds."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        self._credit: dict[str, float] = {}
        self._choosing = 0.0  # seconds that the choice of a token takes, of all of late

    def settle(self, sequence: ScheduledSequence) -> None:
        """Take what its tokens' choice has taken since the last time into account."""
        if sequence.share in self._credit:
            self._credit[sequence.share] -= sequence.spent - sequence.charged
        if sequence.chosen:
            actual = sequence.spent / sequence.chosen
            before = sequence.choosing or actual
            sequence.choosing = before + LEARN * (actual - before)
            self._choosing += LEARN * (actual - self._choosing)
        sequence.spent, sequence.charged, sequence.chosen = 0.0, 0.0, 0

    def part(self, running: Sequence[ScheduledSequence]) -> Part:
        """What each may spend in the next step."""
        for sequence in running:
            self.settle(sequence)
        if len({sequence.share for sequence in running}) < 2:
            self._credit.clear()
            return Part(None, {}, self)
        wanted: dict[str, float] = {}
        prompts: dict[str, float] = {}
        dearest: dict[str, float] = {}
        cheapest: dict[str, float] = {}
        for sequence in running:
            share, row = sequence.share, self.row(sequence)
            costs = row * max(1, min(sequence.prefill_left, MOST_PREFILL))
            if sequence.prefill_left:
                prompts[share] = prompts.get(share, 0.0) + costs
            wanted[share] = wanted.get(share, 0.0) + costs
            dearest[share] = max(dearest.get(share, 0.0), row)
            cheapest[share] = min(cheapest.get(share, row), row)
        before = self._credit
        # What is left over is carried on as far as one row needs it.
        credit = {share: min(before.get(share, 0.0), dearest[share]) for share in wanted}
        most = self._cost.fixed + min(wanted.values())
        # However much all are in debt, someone's turn it is.
        more = max(most, min(cheapest[share] - credit[share] for share in wanted))
        self._credit = {share: each + more for share, each in credit.items()}
        # Else answers that take turns would leave a prompt of their key nothing, ever.
        held = {share: min(costs, self._credit[share] / 2) for share, costs in prompts.items()}
        return Part(self._credit, held, self)

    def choice(self, sequence: ScheduledSequence) -> float:
        """Seconds that one choice of a token is expected to take; none within a prompt."""
        if sequence.prefill_left and not sequence.scoring:
            return 0.0
        return sequence.choosing or self._choosing

    def row(self, sequence: ScheduledSequence) -> float:
        """Seconds that one more token is expected to take."""
        return self._cost.token + self.choice(sequence)


class Part:
    """Of one step: what is still to be spent in it, by each key; without `credit` all there is.

    `held`: how much of it is for prompts alone.
    """

    def __init__(
        self, credit: dict[str, float] | None, held: dict[str, float], shares: Shares
    ) -> None:
        self._credit = credit
        self._held = held
        self._shares = shares

    def in_turn(self, sequences: Iterable[ScheduledSequence]) -> list[ScheduledSequence]:
        """Those that waited longest first, where not all may have room."""
        if self._credit is None:
            return list(sequences)
        return sorted(sequences, key=lambda each: (each.priority, each.stepped, each.arrival))

    def room(self, sequence: ScheduledSequence, most: int) -> int:
        """Up to `most` tokens of this sequence that its key can pay for."""
        if self._credit is None:
            return most
        credit = self._credit[sequence.share]
        if not sequence.prefill_left:
            credit -= self._held.get(sequence.share, 0.0)
        affordable = int(credit / self._shares.row(sequence) + ROUNDING)
        return max(0, min(most, affordable))

    def spend(self, sequence: ScheduledSequence, tokens: int) -> None:
        """Pay for tokens of this sequence."""
        if self._credit is not None:
            self._credit[sequence.share] -= tokens * self._shares.row(sequence)
            sequence.charged += tokens * self._shares.choice(sequence)

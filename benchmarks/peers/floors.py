"""What maestrale set itself to reach against its peers, beside what a run reached.

A floor is a ratio of medians (or a median) with a bound. Two of them need a reading, told in
the row: llama.cpp "at its best" is its best row in each cell, and "no stall" is a longest pause.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.peers.rounds import Found

LLAMACPP = ("llamacpp-q4_1", "llamacpp-q4_0", "xllamacpp")
CELLS = {
    "tokens_per_second_1": "1 stream",
    "tokens_per_second_8": "8 streams",
    "tokens_per_second_32": "32 streams",
    "article_ttft": "article TTFT",
}
# Least speed at 1, 8 and 32 streams as a multiple of theirs, and the most time of the article.
SAME_GGUF = (1.2, 2.5, 4.5, 0.25)
AT_ITS_BEST = (0.8, 1.5, 2.5, 0.5)
BEFORE = 1.2  # at 1, 8 and 32 streams
NO_STALL = 1.5
# One median each: (number, what it is, the most it may be).
OWN = (
    ("follow_up_ratio", "follow-up TTFT : article TTFT", 0.06),
    ("json_ratio", "JSON by schema : free text, time per token", 1.1),
    ("schema_stall", "longest pause while a schema is compiled : with no schema", NO_STALL),
    ("fairness", "pause p99 : median while 4 articles arrive", 3.0),
    ("cold_start", "start to first token, s", 0.8),
)
FRONT_END_FLOOR = 20_000


@dataclass(frozen=True)
class Reached:
    """One row: what was to be reached, and what was. `value` is None where not measured."""

    what: str
    floor: float
    value: float | None
    at_least: bool

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        kept = self.value >= self.floor if self.at_least else self.value <= self.floor
        return "yes" if kept else "**no**"

    @property
    def cells(self) -> tuple[str, ...]:
        sign = "≥" if self.at_least else "≤"
        value = "-" if self.value is None else _number(self.value)
        return self.what, f"{sign} {_number(self.floor)}", value, self.verdict


def reached(found: Mapping[str, Found], front_end: float | None = None) -> Iterator[Reached]:
    """Every floor. `front_end`: tokens/s that the API process alone streamed to 128 clients."""
    same = (("llamacpp-q4_1",), SAME_GGUF, "llama.cpp on the same GGUF")
    best = (LLAMACPP, AT_ITS_BEST, "llama.cpp's best row")
    for others, floors, name in (same, best):
        for (cell, title), floor in zip(CELLS.items(), floors, strict=True):
            value = _ratio(found, others, cell)
            yield Reached(f"{title}, against {name}", floor, value, cell != "article_ttft")
    beside: list[tuple[str, str, float, tuple[int, ...]]] = [
        ("vllm", "against vLLM's CPU build", 3.0, (8, 32)),
        ("genai", "over HTTP, against OpenVINO GenAI alone", 0.95, (8, 32)),
    ]
    if "before" in found:
        beside.append(("before", "against the earlier commit", BEFORE, (1, 8, 32)))
    for other, name, floor, streams in beside:
        for count in streams:
            cell = f"tokens_per_second_{count}"
            value = _ratio(found, (other,), cell)
            yield Reached(f"{CELLS[cell]}, {name}", floor, value, True)
    for number, title, most in OWN:
        yield Reached(title, most, median(found, "ours", number), False)
    what = "front end alone: tokens/s streamed to 128 clients"
    yield Reached(what, FRONT_END_FLOOR, front_end, True)


def ahead(found: Mapping[str, Found]) -> tuple[list[str], int]:
    """(cells in which another server is ahead of ours, cells compared). Follow-ups included.

    A cell counts once; the best of all others is what it is compared with.
    """
    cells = {**CELLS, "follow_up_ttft": "follow-up TTFT"}
    others = tuple(other for other in found if other not in ("ours", "before"))
    behind, compared = [], 0
    for cell, title in cells.items():
        value = _ratio(found, others, cell)
        if value is None:
            continue
        compared += 1
        if value > 1 if cell.endswith("ttft") else value < 1:
            behind.append(f"{title} ({value:.2f})")
    return behind, compared


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value < 0.1 else f"{value:.2f}"


def median(found: Mapping[str, Found], key: str, number: str) -> float | None:
    values = found[key].numbers.get(number) if key in found else None
    return statistics.median(values) if values else None


def _ratio(found: Mapping[str, Found], others: tuple[str, ...], cell: str) -> float | None:
    """Ours to the best of `others`, as it is: for times, below 1 is quicker."""
    mine = median(found, "ours", cell)
    theirs = [value for other in others if (value := median(found, other, cell))]
    if mine is None or not theirs:
        return None
    return mine / (min(theirs) if cell.endswith("ttft") else max(theirs))

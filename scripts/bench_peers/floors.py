"""What maestrale set itself to reach against its peers, beside what a run reached.

A floor is a ratio of medians (or a median) with a bound. Two of them need a reading, told in
the row: llama.cpp "at its best" is its best row in each cell, and "no stall" is a longest pause.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench_peers.rounds import Found

LLAMACPP = ("llamacpp-q4_1", "llamacpp-q4_0", "xllamacpp")
MODES = {"ours": "deterministic", "ours-fast": "fast"}
CELLS = {
    "tokens_per_second_1": "1 stream",
    "tokens_per_second_8": "8 streams",
    "tokens_per_second_32": "32 streams",
    "article_ttft": "article TTFT",
}
# For each mode: least speed at 1, 8 and 32 streams as a multiple of theirs, and the most time.
SAME_GGUF = {"ours": (0.9, 1.8, 3.0, 0.35), "ours-fast": (0.9, 2.5, 4.5, 0.25)}
AT_ITS_BEST = {"ours": (0.8, 1.05, 1.8, 0.75), "ours-fast": (0.8, 1.5, 2.5, 0.5)}
NO_STALL = 1.5
# One median each: (number, what it is, the most it may be).
OWN = (
    ("follow_up_ratio", "follow-up TTFT : article TTFT", 0.06),
    ("json_ratio", "JSON by schema : free text, time per token", 1.1),
    ("schema_stall", "longest pause while a schema is compiled : with no schema", NO_STALL),
    ("fairness", "pause p99 : median while 4 articles arrive", 3.0),
    ("cold_start", "start to first token, s", 3.0),
)
FRONT_END_FLOOR = 20_000


@dataclass(frozen=True)
class Reached:
    """One row: what `of` was to reach, and what it did. `value` is None where not measured."""

    of: str
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
        return self.of, self.what, f"{sign} {_number(self.floor)}", value, self.verdict


def reached(found: Mapping[str, Found], front_end: float | None = None) -> Iterator[Reached]:
    """Every floor. `front_end`: tokens/s that the API process alone streamed to 128 clients."""
    for key, mode in MODES.items():
        same = [("llamacpp-q4_1",), SAME_GGUF[key], "llama.cpp on the same GGUF"]
        best = [LLAMACPP, AT_ITS_BEST[key], "llama.cpp's best row"]
        for others, floors, name in (same, best):
            for (cell, title), floor in zip(CELLS.items(), floors, strict=True):
                value = _ratio(found, key, others, cell)
                yield Reached(
                    mode, f"{title}, against {name}", floor, value, cell != "article_ttft"
                )
        for cell in ("tokens_per_second_8", "tokens_per_second_32"):
            value = _ratio(found, key, ("vllm",), cell)
            yield Reached(mode, f"{CELLS[cell]}, against vLLM's CPU build", 3.0, value, True)
    for other, name in (("genai", "the GGUF itself"), ("genai-int8", "our int8 weights")):
        for cell in ("tokens_per_second_8", "tokens_per_second_32"):
            value = _ratio(found, "ours", (other,), cell)
            what = f"{CELLS[cell]}, over HTTP, against OpenVINO GenAI alone on {name}"
            yield Reached("deterministic", what, 0.95, value, True)
    for key, mode in MODES.items():
        for number, title, most in OWN:
            yield Reached(mode, title, most, median(found, key, number), False)
    what = "front end alone: tokens/s streamed to 128 clients"
    yield Reached("API process", what, FRONT_END_FLOOR, front_end, True)


def ahead(found: Mapping[str, Found], key: str) -> tuple[list[str], int]:
    """(cells in which another server is ahead of `key`, cells compared). Follow-ups included.

    A cell counts once; the best of all other servers is what it is compared with.
    """
    cells = {**CELLS, "follow_up_ttft": "follow-up TTFT"}
    others = tuple(other for other in found if other not in MODES)
    behind, compared = [], 0
    for cell, title in cells.items():
        value = _ratio(found, key, others, cell)
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


def _ratio(
    found: Mapping[str, Found], key: str, others: tuple[str, ...], cell: str
) -> float | None:
    """Ours to the best of `others`, as it is: for times, below 1 is quicker."""
    mine = median(found, key, cell)
    theirs = [value for other in others if (value := median(found, other, cell))]
    if mine is None or not theirs:
        return None
    return mine / (min(theirs) if cell.endswith("ttft") else max(theirs))

"""The section of docs/notes/benchmarks.md that `bench-peers --sizes` writes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.peers.quality import perplexity

HEADING = "## Usual sizes"
TITLES = {
    "streams_1": "1 stream",
    "streams_8": "8 streams",
    "prompt_430": "prompt of 430",
    "prompt_8000": "prompt of 8,000",
    "behind_8000": "decoding behind 8,000",
}
FLOORS = {
    "streams_1": 1.2,
    "streams_8": 2.2,
    "prompt_430": 2.0,
    "prompt_8000": 2.0,
    "behind_8000": 1.2,
}
LONG = 8000


class Compared(NamedTuple):
    """Medians of tokens a second."""

    file: str
    number: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs

    @property
    def kept(self) -> bool:
        return self.ratio >= FLOORS[self.number]


def compared(data: Mapping[str, Any]) -> Iterator[Compared]:
    """Every cell that was measured on both sides."""
    for file, sides in data["files"].items():
        for number in TITLES:
            both = [sides.get(side, {}).get(number) for side in ("ours", "llamacpp")]
            if both[0] and both[1]:
                yield Compared(file, number, *map(statistics.median, both))


def section(data: Mapping[str, Any]) -> str:
    """Its heading, both tables, and what they are."""
    rows = list(compared(data))
    limits, versions = data["limits"], data["versions"]
    kept = sum(row.kept for row in rows)
    parts = [
        f"{HEADING}\n",
        f"`{data['command']}`, {data['date']}: llama-server ({versions['llamacpp']}), compiled for "
        f"this processor, and ours at commit {versions['commit']}, each of its cells one after the "
        "other, on the same file. The files have the shapes and types of tensors of usual ones, "
        "and random weights; prompts are random token ids, sampling is at temperature 1 (at 0 "
        "random weights repeat themselves, and ours would guess it). Both compute with the very "
        "values of the file and round activations to 8 bits. Random weights have no perplexity "
        "worth the name: that of a row is the bundled model's in its type, ours : llama.cpp's "
        "([performance.md](performance.md#what-rounding-costs)).\n",
        "Tokens a second, ours : llama-server's, and the ratio of the medians. A column's title "
        "has its floor. 1 stream and decoding behind a prompt: behind the first token. 8 streams: "
        "from the first request to the last token.\n",
        _row("", "perplexity", *(f"{title}: ≥ {FLOORS[key]}" for key, title in TITLES.items())),
        _row("---", *["---:"] * (1 + len(TITLES))),
        *_ratios(rows, data),
        f"\n{kept} of {len(rows)} floors are kept.\n",
        f"What of the machine ours uses. It reads memory at {limits['read_bandwidth'] / 1e9:.1f} "
        f"GB/s; products of many rows in our kernel reach {limits['int8_ops'] / 1e9:,.0f} GOP/s in "
        "int8 (the better of 4 and of 8 bits, 512 rows). A token takes two operations for each "
        "weight that it is multiplied with, and of a long prompt those of attention to what is "
        "before it.\n",
        _row("", "read for a token, MB", "1 stream: share of bandwidth",
             "prompt of 430: share of int8", "prompt of 8,000: share of int8"),
        _row("---", *["---:"] * 4),
        *_shares(data),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def replaced(page: str, written: str) -> str:
    """The page with this section in the place of the one that it had, or at its end."""
    before, found, rest = page.partition(f"{HEADING}\n")
    if not found:
        return f"{page.rstrip()}\n\n{written}"
    _, heading, behind = rest.partition("\n## ")
    return before + written + heading + behind


def _ratios(rows: list[Compared], data: Mapping[str, Any]) -> Iterator[str]:
    by_place = {(row.file, row.number): row for row in rows}
    for file in data["files"]:
        kind = file.split()[-1]
        cells = [" : ".join(perplexity(kind, side) for side in ("ours", "llamacpp"))]
        for number in TITLES:
            row = by_place.get((file, number))
            cells.append("-" if row is None else _told(row))
        yield _row(_name(file, data), *cells)


def _told(row: Compared) -> str:
    mark = "" if row.kept else " **no**"
    return f"{_speed(row.ours)} : {_speed(row.theirs)}<br>**{row.ratio:.2f}**{mark}"


def _shares(data: Mapping[str, Any]) -> Iterator[str]:
    limits = data["limits"]
    for file, sides in data["files"].items():
        facts = sides["facts"]
        mine = sides.get("ours", {}).items()
        speed = {number: statistics.median(values) for number, values in mine if values}
        inner = 2 * (facts["weights"] - facts["head_weights"])
        each = {"prompt_430": inner, "prompt_8000": inner + facts["attention"] * LONG / 2}
        shares = [_share(speed.get("streams_1"), facts["bytes"], limits["read_bandwidth"])]
        shares += [_share(speed.get(key), each[key], limits["int8_ops"]) for key in each]
        yield _row(_name(file, data), f"{facts['bytes'] / 1e6:,.0f}", *shares)


def _share(speed: float | None, each: float, limit: float) -> str:
    return "-" if speed is None else f"{speed * each / limit:.0%}"


def _name(file: str, data: Mapping[str, Any]) -> str:
    facts = data["files"][file]["facts"]
    return f"{facts['title']}, {file.split()[-1]}, {facts['size'] / 1e9:.1f} GB"


def _speed(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"

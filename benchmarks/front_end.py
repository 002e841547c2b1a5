"""What the API process costs: tokens streamed from an engine that never waits.

    scripts/bench-frontend [--streams 1 2 4 ... 512] [--tokens 256] [--plot FILE.svg]
    scripts/bench-frontend --pace 160 --streams 128     each token in an event of its own
    scripts/bench-frontend --api-workers 2              several API processes, and their parent

Starts `maestrale serve` on the scripted engine, whose tokens cost next to nothing, and loads it
with `maestrale bench`'s generator. The API process has one core to itself; engine and generator
share the others. For each number of streams: tokens/s as the clients see them, and the CPU time
of the API process, the engine process and the generator for a token. Tokens that the engine has
ready while the last ones are being sent go out in one event; --pace makes the engine so slow
that they don't.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

STREAMS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
ENOUGH_TOKENS, ENOUGH_SECONDS = 8_000, 8.0
TICKS = os.sysconf("SC_CLK_TCK")


def serve(port: str, pace: str, workers: int) -> None:
    """In a process of its own: the server, its engine told to say the same words for ever."""
    from dataclasses import replace

    from maestrale.config.reading import load_settings
    from maestrale.config.settings import Settings
    from maestrale.engines.base import EngineConfig
    from maestrale.serve import hosting, server

    plain = hosting.engine_config

    def scripted(settings: Settings, model_dir: str) -> EngineConfig:
        from msgspec.structs import replace

        options = {"text": " The wind blows from the north along the valley to the sea."}
        if pace != "0":
            options["tokens_per_second"] = pace
        return replace(plain(settings, model_dir), options=options)

    hosting.engine_config = scripted
    flags = {"engine": "scripted", "port": port, "max_num_seqs": "512", "max_waiting": "1024"}
    flags |= {"log_level": "warning", "api_workers": str(workers)}
    settings = load_settings(flags, {}, None)
    server.run(replace(settings))


def cpu_seconds(pids: list[int]) -> float:
    """Of these processes together."""
    return sum(map(_cpu_seconds, pids))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def children_of(pid: int, module: str) -> list[int]:
    """The server's children that run this module."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    mark = f"maestrale.{module}".encode()
    return [int(child) for child in children if mark in Path(f"/proc/{child}/cmdline").read_bytes()]


async def load(url: str, model: str, streams: int, tokens_each: int) -> tuple[int, int, float]:
    """Gives (tokens by the server's count, events with text, seconds)."""
    import msgspec

    from maestrale.bench.client import BenchTarget, Client

    client = Client(BenchTarget(url), timeout=300)
    body = msgspec.json.encode(
        {
            "model": model,
            "messages": [{"role": "user", "content": "Speak."}],
            "max_tokens": tokens_each,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    begun = time.perf_counter()
    answers = await asyncio.gather(*(client.ask(body) for _ in range(streams)))
    seconds = time.perf_counter() - begun
    client.close()
    failed = [answer.error for answer in answers if answer.error]
    if failed:
        raise SystemExit(f"{len(failed)} of {streams} streams failed: {failed[0]}")
    tokens = sum(answer.usage.completion_tokens for answer in answers if answer.usage)
    return tokens, sum(answer.pieces for answer in answers), seconds


def measure(
    url: str, model: str, parts: dict[str, list[int]], streams: int, tokens: int
) -> dict[str, Any]:
    """One row: `streams` answers of `tokens` tokens at once, again until there are enough."""
    import uvloop

    row = {"streams": streams, "tokens": 0, "events": 0, "seconds": 0.0}
    before = [*map(cpu_seconds, parts.values()), time.process_time()]
    while row["tokens"] < ENOUGH_TOKENS and row["seconds"] < ENOUGH_SECONDS:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            got, events, seconds = runner.run(load(url, model, streams, tokens))
        row["tokens"] += got
        row["events"] += events
        row["seconds"] += seconds
    after = [*map(cpu_seconds, parts.values()), time.process_time()]
    spent = [later - earlier for earlier, later in zip(before, after, strict=True)]
    return row | dict(zip((*parts, "generator"), spent, strict=True))


def start(port: int, pace: float, workers: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.front_end",
        "--serve",
        str(port),
        "--pace",
        str(pace),
    ]
    command += ["--api-workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(1200):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return process
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise SystemExit("the server did not start")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from maestrale.bench.plot import Line, chart

    total = [(row["streams"], row["api"] / row["tokens"] * 1e6) for row in rows]
    speed = [(row["streams"], row["tokens"] / row["seconds"] / 1000) for row in rows]
    cost = [Line("API process, µs a token", total)]
    cost.append(Line("streamed, 1,000 tokens/s", speed))
    svg = chart("Cost of a token", "streams at once", "µs; 1,000 tokens/s", cost, log_x=True)
    svg = svg.partition("<div")[0].replace("var(--one)", "#1f6fb4").replace("var(--two)", "#c2571a")
    style = (
        "<style>svg{background:#fff;font:11px sans-serif}line{stroke:#d8dee4}"
        "polyline{fill:none;stroke-width:2}text{fill:#5b6673}</style>"
        '<rect width="100%" height="100%" fill="#fff"/>'
        '<text x="70" y="12" style="fill:#1f6fb4">API process: µs a token</text>'
        '<text x="250" y="12" style="fill:#c2571a">streamed: 1,000 tokens/s</text>'
    )
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    path.write_text(svg.replace("</title>", "</title>" + style, 1))


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--pace", type=int, default=0, help="tokens/s of each stream; 0: no limit")
    parser.add_argument("--api-workers", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    parser.add_argument("--serve", metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, str(options.pace), options.api_workers)
        return
    port = free_port()
    server = start(port, options.pace, options.api_workers)
    try:
        url, model = f"http://127.0.0.1:{port}", "smollm2-135m-instruct"
        parts = {"api": [server.pid], "engine": children_of(server.pid, "supervise.worker")}
        if options.api_workers > 1:
            api = children_of(server.pid, "workers.worker")
            parts = {"api": api, "parent": [server.pid], "engine": parts["engine"]}
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1 and options.api_workers == 1:
            for pid in (0, *parts["engine"]):
                os.sched_setaffinity(pid, cores[1:])
            os.sched_setaffinity(server.pid, cores[:1])
        measure(url, model, parts, 8, 256)
        names = [*parts, "generator"]
        print("streams  tokens/s  tokens/event   µs of CPU a token:", *map("{:>9}".format, names))
        rows = []
        for streams in options.streams:
            row = measure(url, model, parts, streams, options.tokens)
            rows.append(row)
            spent = [row[name] / row["tokens"] * 1e6 for name in names]
            print(
                f"{streams:7} {row['tokens'] / row['seconds']:9.0f} "
                f"{row['tokens'] / row['events']:13.1f} {'':20}",
                *map("{:9.1f}".format, spent),
                flush=True,
            )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
        if options.plot:
            plot(rows, options.plot)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    main()

"""Several models on one server: what they cost, and how soon one that isn't loaded answers.

    scripts/bench-several [--only rest loads front] [--before REVISION] [--write]

rest   memory (PSS) and CPU time of all processes while nobody asks: of a server with one model, and
       with a second one, which is the bundled one again, before it is loaded, loaded, and unloaded
loads  from a request to its first token where the model isn't loaded, beside llama.cpp's router on
       the same file (`llama-server --models-dir`), each in turn, the other idle. The file is read
       before, and free memory is filled once, as in bench-start
front  CPU time of the API process for a token (bench-frontend), beside an earlier revision's
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.front_end import cpu_seconds
from benchmarks.output import say, write_page
from benchmarks.peers import install
from benchmarks.peers.__main__ import bundled_gguf
from benchmarks.peers.peers import BUNDLED
from benchmarks.peers.processes import Running, descendants, free_port, running
from benchmarks.peers.sizes import written_shape
from benchmarks.start import KIND, MIB, PAGE, PATIENCE, SHAPE, TITLE, ask, fill_free_memory

ROOT = Path(__file__).resolve().parents[1]
NAME = "bench-several"  # of the table, on its page
SECTIONS = ("rest", "loads", "front")
SETTLING, RESTING = 65.0, 30.0  # seconds; processes that compile schemas go after a minute
CONTEXT = 4096  # tokens
STREAMS = 128
FRONT_ROUNDS = 5  # for each of the others: they are short
ONE_MODEL = "7f56e09"  # 0.3.0, the last with one model on a server


@dataclass
class Rest:
    """A row: what is there, its memory, and the CPU time of all processes while nobody asks."""

    title: str
    memory: int
    seconds: float


@dataclass
class Side:
    """A server that has one model, and loads it when it is asked for."""

    title: str
    ask: Callable[[], None]
    """Until the first token is here."""
    unload: Callable[[], None]
    """Until nothing of the model is in memory."""
    seconds: list[float] = field(default_factory=list)


def call(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One request. Raises: RuntimeError where it is refused."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        read = answer.read()
    finally:
        connection.close()
    if answer.status >= 400:
        raise RuntimeError(f"{path} is refused: {read[:300]!r}")
    return json.loads(read)


def wait(true: Callable[[], bool]) -> None:
    """Raises: RuntimeError where it doesn't come true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError("it did not happen in time")
        time.sleep(0.05)


# Ours


@contextlib.contextmanager
def ours(scratch: Path, *tables: str) -> Iterator[tuple[Running, int]]:
    """Our server with these tables; its first model is loaded."""
    file, port = scratch / "several.toml", free_port()
    file.write_text("\n".join(f"[[model]]\n{table}" for table in tables))
    command = [sys.executable, "-m", "maestrale", "serve", "--config", str(file)]
    command += ["--port", str(port)]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    with running(command, scratch / "ours.log", {"PYTHONPATH": path}) as server:
        server.wait_until_healthy(port, PATIENCE)
        wait(lambda: "ready" in states(port).values())
        yield server, port


def states(port: int) -> dict[str, str]:
    return {each["id"]: each["state"] for each in call(port, "GET", "/v1/models")["data"]}


def unload(port: int, model: str) -> None:
    def accepted() -> bool:
        with contextlib.suppress(RuntimeError):  # it has not noticed yet that its client is gone
            call(port, "POST", f"/v1/models/{model}/unload")
            return True
        return False

    wait(accepted)
    wait(lambda: states(port)[model] == "unloaded")


# At rest


def at_rest(scratch: Path) -> list[Rest]:
    """The rows, in order."""
    first, second = (
        f'name = "{name}"\nsource = "{BUNDLED}"\nkeep_alive = "1h"' for name in ("first", "second")
    )
    with ours(scratch, first) as (server, _):
        rows = [_rest("one model", server)]
    with ours(scratch, first, second) as (server, port):
        rows.append(_rest("two, the second not loaded yet", server))
        ask(port, "second")
        rows.append(_rest("two, both loaded", server))
        unload(port, "second")
        rows.append(_rest("two, the second unloaded again", server, 10.0))
    return rows


def _rest(title: str, server: Running, settling: float = SETTLING) -> Rest:
    time.sleep(settling)
    before = _cpu_seconds_each(server)
    time.sleep(RESTING)
    after = _cpu_seconds_each(server)
    spent = sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())
    row = Rest(title, server.memory().pss, spent)
    say(f"{title}: {row.memory / MIB:.0f} MiB, {row.seconds:.2f} s of CPU in {RESTING:.0f} s")
    return row


def _cpu_seconds_each(server: Running) -> dict[int, float]:
    """Of the server's processes."""
    found = {}
    for pid in descendants(server.process.pid):
        with contextlib.suppress(OSError):  # it has just ended
            found[pid] = cpu_seconds([pid])
    return found


def rest_as_markdown(rows: Sequence[Rest]) -> str:
    lines = [
        f"| at rest | memory, MiB | CPU in {RESTING:.0f} s, s |",
        "|---|---:|---:|",
        *(f"| {each.title} | {each.memory / MIB:,.0f} | {each.seconds:.2f} |" for each in rows),
    ]
    return "\n".join(lines)


# From a request to the first token


def loads(file: Path, llama_server: Path, rounds: int, scratch: Path) -> list[Side]:
    """Both sides on one file, in turn; the first round only makes what is kept."""
    folder = scratch / "models"
    folder.mkdir(exist_ok=True)
    link = folder / "asked.gguf"
    link.unlink(missing_ok=True)
    link.symlink_to(file.resolve())
    table = f'name = "asked"\nsource = "{file}"\nkeep_alive = "1h"\nmax_model_len = {CONTEXT}'
    with contextlib.ExitStack() as stack:
        _, port = stack.enter_context(ours(scratch, table))
        sides = [
            Side("maestrale", lambda: ask(port, "asked"), lambda: unload(port, "asked")),
            stack.enter_context(_router(llama_server, folder, scratch)),
        ]
        sides[0].unload()
        for number in range(rounds + 1):
            for side in sides:
                with file.open("rb") as content:  # into the page cache
                    while content.read(1 << 24):
                        pass
                fill_free_memory(file.stat().st_size * 3 // 2 + (1 << 30))
                begun = time.perf_counter()
                side.ask()
                took = time.perf_counter() - begun
                say(f"{file.name}, {side.title}: {took:.2f} s")
                if number:
                    side.seconds.append(took)
                side.unload()
    return sides


@contextlib.contextmanager
def _router(llama_server: Path, folder: Path, scratch: Path) -> Iterator[Side]:
    """llama.cpp's server as a router; one that is none yet is started for each request."""
    threads, log = str(len(os.sched_getaffinity(0))), scratch / "theirs.log"
    more = ["--host", "127.0.0.1", "-t", threads, "-tb", threads, "-c", str(CONTEXT)]
    told = subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=False)
    if "--models-dir" not in told.stdout + told.stderr:
        started: list[Running] = []

        def start() -> None:
            port = free_port()
            command = [str(llama_server), "-m", str(folder / "asked.gguf"), "--port", str(port)]
            started.append(Running([*command, *more], log, {}))
            started[-1].wait_until_healthy(port, PATIENCE)
            ask(port, "asked")

        yield Side(
            "llama.cpp's server, started (it has no router)", start, lambda: started.pop().stop()
        )
        return
    port = free_port()
    command = [str(llama_server), "--models-dir", str(folder), "--models-max", "1", *more]
    with running([*command, "--port", str(port)], log, {}) as server:
        server.wait_until_healthy(port, PATIENCE)

        def unload_theirs() -> None:
            call(port, "POST", "/models/unload", {"model": "asked"})
            wait(lambda: len(descendants(server.process.pid)) == 1)

        yield Side("llama.cpp's router", lambda: ask(port, "asked"), unload_theirs)


def loads_as_markdown(found: dict[str, list[Side]]) -> str:
    titles = list(dict.fromkeys(side.title for sides in found.values() for side in sides))
    lines = [
        "| from a request to its first token, the model not loaded, s | "
        + " | ".join(titles)
        + " |",
        "|---|" + "---:|" * len(titles),
    ]
    for title, sides in found.items():
        told = {
            side.title: f"{statistics.median(side.seconds):.2f} "
            f"({min(side.seconds):.2f} to {max(side.seconds):.2f})"
            for side in sides
        }
        lines.append(f"| {title} | " + " | ".join(told.get(each, "") for each in titles) + " |")
    return "\n".join(lines)


# The front end


def front(revision: str, rounds: int, scratch: Path) -> tuple[float, float]:
    """The API process's CPU time for a token, in µs: now, and at that revision."""
    earlier = scratch / "earlier"
    earlier.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision], stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(earlier)], input=archive.stdout, check=True)
    found: dict[Path, list[float]] = {ROOT: [], earlier: []}
    for _ in range(rounds):
        for tree, costs in found.items():
            rows = scratch / "rows.json"
            command = [sys.executable, "-m", "benchmarks.front_end", "--streams", str(STREAMS)]
            path = os.pathsep.join([str(tree / "src"), str(tree)])
            subprocess.run(
                [*command, "--json", str(rows)],
                cwd=tree,
                env={**os.environ, "PYTHONPATH": path},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            (row,) = json.loads(rows.read_text())
            costs.append(row["api"] / row["tokens"] * 1e6)
            say(f"the front end of {tree.name}: {costs[-1]:.2f} µs a token")
    now, before = (statistics.median(costs) for costs in found.values())
    return now, before


def front_as_text(now: float, before: float, revision: str) -> str:
    return (
        f"CPU time of the API process for a token, {STREAMS} streams: {now:.1f} µs; at {revision} "
        f"{before:.1f} µs. Ratio {now / before:.2f}."
    )


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench-several", description=__doc__, formatter_class=raw)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--file", type=Path, help="another GGUF file in the 7B's place")
    parser.add_argument("--llama-server", type=Path, help="this one; else it is compiled here")
    parser.add_argument("--before", default=ONE_MODEL, metavar="REVISION")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/maestrale-peers"))
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    parts = [f"{os.cpu_count()} cores; medians of {options.rounds}, in turn."]
    with tempfile.TemporaryDirectory(prefix="bench-several-") as folder:
        scratch = Path(folder)
        if "rest" in options.only:
            parts.append(rest_as_markdown(at_rest(scratch)))
        if "loads" in options.only:
            peers = options.cache.expanduser()
            large = options.file or written_shape(peers, bundled_gguf(), SHAPE, KIND, say)
            files = {
                "the bundled model, 135M": bundled_gguf(),
                options.file.name if options.file else TITLE: large,
            }
            server = options.llama_server or install.llamacpp(peers, say) / "llama-server"
            found = {
                title: loads(file, server, options.rounds, scratch) for title, file in files.items()
            }
            parts.append(loads_as_markdown(found))
        if "front" in options.only:
            costs = front(options.before, FRONT_ROUNDS * options.rounds, scratch)
            parts.append(front_as_text(*costs, options.before))
    table = "\n\n".join(parts)
    print(table)
    if options.write:
        write_page(PAGE, NAME, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

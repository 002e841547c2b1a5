"""From the command to the first token: ours by its launcher, and llama.cpp's server, in turn.

The file is that of `peers/shapes.py`'s Mistral-7B in Q4_0 (3.9 GB, written once), or any other.
Ours is started with a cache that has never seen the model, then again with it; and with the
bundled model, again. The file is read before, so that it lies in the page cache.

Before each start free memory is filled once. A virtual machine's free memory may have gone back to
its host, and then whoever starts first pays for getting it: more than all else that is measured.

Time and memory are measured in different starts: who asks for memory holds up who fills it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.output import say, write_page
from benchmarks.peers import install
from benchmarks.peers.__main__ import bundled_gguf
from benchmarks.peers.peers import BUNDLED
from benchmarks.peers.processes import Running, descendants, free_port
from benchmarks.peers.sizes import written_shape
from maestrale.config.paths import default_cache_dir

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "notes" / "performance.md"
NAME = "bench-start"  # of the table, on its page
SHAPE, KIND, TITLE = "mistral-7b", "Q4_0", "Mistral-7B's shape, Q4_0"
PATIENCE = 600.0  # seconds
MIB = 1 << 20
LEFT = 1 << 30  # of free memory, when it is filled


@dataclass
class Start:
    """One row: what was started, and what each start gave."""

    title: str
    command: Sequence[str]
    model: str
    environment: Mapping[str, str] = field(default_factory=dict)
    fresh: Path | None = None
    """A cache whose models are removed before each start."""
    fill: int = 1 << 30
    """Bytes of free memory that are filled before it: what it takes itself, and more."""
    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    written: int = 0


class Watch:
    """The most memory at a time of a process and all below it, and the bytes that they wrote."""

    def __init__(self, running: Running) -> None:
        self.memory = 0
        self._written: dict[int, int] = {}
        self._running = running
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    @property
    def written(self) -> int:
        return sum(self._written.values())

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.memory = max(self.memory, self._running.memory().pss)
            for pid in descendants(self._running.process.pid):
                with suppress(OSError):
                    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
                        if line.startswith("write_bytes:"):
                            self._written[pid] = int(line.split()[1])


def first_token(start: Start, log: Path, *, watched: bool) -> None:
    """Start it, ask until it answers, and keep what was measured. Raises: RuntimeError."""
    if start.fresh is not None:
        shutil.rmtree(start.fresh / "models", ignore_errors=True)
    fill_free_memory(start.fill)
    port = free_port()
    command = [part.replace("{port}", str(port)) for part in start.command]
    running = Running(command, log, start.environment)
    watch = Watch(running) if watched else None
    try:
        running.wait_until_healthy(port, PATIENCE)
        ask(port, start.model)
        if watch is None:
            start.seconds.append(time.perf_counter() - running.started)
    finally:
        if watch is not None:
            watch.end()
            start.memory = max(start.memory, watch.memory)
            start.written = max(start.written, watch.written)
        running.stop()


def ask(port: int, model: str) -> None:
    """Until the first piece of an answer is here. Raises: RuntimeError where none comes."""
    body = json.dumps({
        "model": model,
        "prompt": "Once upon a time",
        "max_tokens": 2,
        "temperature": 0,
        "stream": True,
    })  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    head = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", body, head)
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"it refuses: {answer.read(300)!r}")
    try:
        while line := answer.readline():
            if line.startswith(b"data:") and b'"choices"' in line:
                return
    finally:
        connection.close()
    raise RuntimeError("it gave no token")


def fill_free_memory(size: int) -> None:
    """In a process of its own, which ends at once."""
    code = (
        "import mmap, sys\n"
        "size = int(sys.argv[1])\n"
        "place = mmap.mmap(-1, size)\n"
        "place.madvise(mmap.MADV_HUGEPAGE)\n"
        f"for at in range(0, size, {mmap.PAGESIZE}): place[at] = 1\n"
    )
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemFree:"):
            size = min(size, int(line.split()[1]) * 1024 - LEFT)
            if size > 0:
                subprocess.run([sys.executable, "-c", code, str(size)], check=True)


def starts(file: Path, bundled: bool, cache: Path, llama_server: Path) -> list[Start]:
    """What is measured, in the order of the table."""
    launcher = [str(ROOT / "maestrale"), "serve", "--port", "{port}"]
    ours = [*launcher, "--model", str(file), "--cache-dir", str(cache)]
    threads = str(len(os.sched_getaffinity(0)))
    llama = [str(llama_server), "-m", str(file)]
    llama += ["--host", "127.0.0.1", "--port", "{port}", "-t", threads, "-tb", threads]
    name, fill = file.stem, file.stat().st_size * 3 // 2 + (1 << 30)
    found = [
        Start("maestrale, the first time", ours, name, fresh=cache, fill=fill),
        Start("maestrale, again", ours, name, fill=fill),
        Start("llama.cpp's server", [*llama, "-c", "4096"], "any", fill=fill),
    ]
    if bundled:
        found.append(Start("maestrale, the bundled model, again", launcher, BUNDLED))
    return found


def as_markdown(title: str, found: Sequence[Start]) -> str:
    """The table."""
    lines = [
        f"{title}; {os.cpu_count()} cores; medians of {len(found[0].seconds)}, in turn:",
        "",
        "| | first token after, s | most memory, MiB | written to disk, MiB |",
        "|---|---:|---:|---:|",
    ]
    for each in found:
        lines.append(
            f"| {each.title} | {statistics.median(each.seconds):.2f} | "
            f"{each.memory / MIB:,.0f} | {each.written / MIB:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser("bench-start", description=__doc__)
    parser.add_argument("--file", type=Path, help="another GGUF file")
    parser.add_argument("--llama-server", type=Path, help="this one; else it is compiled here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/maestrale-peers"))
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    peers = options.cache.expanduser()
    file = options.file or written_shape(peers, bundled_gguf(), SHAPE, KIND, say)
    llama_server = options.llama_server or install.llamacpp(peers, say) / "llama-server"
    with tempfile.TemporaryDirectory(prefix="bench-start-") as scratch:
        cache = Path(scratch, "cache")
        cache.mkdir()
        with suppress(OSError):  # else it is compiled in the first round
            shutil.copytree(default_cache_dir() / "kernel", cache / "kernel")
        found = starts(file, options.file is None, cache, llama_server)
        for number in range(options.rounds + 1):
            for each in found:
                with file.open("rb") as content:  # into the page cache
                    while content.read(1 << 24):
                        pass
                # The first round makes what is kept, the kernel above all, and asks for memory.
                first_token(each, Path(scratch, "log"), watched=number == 0)
                told = f"{each.seconds[-1]:.2f} s" if each.seconds else f"{each.memory >> 20} MiB"
                say(f"{each.title}: {told}")
    table = as_markdown(TITLE if options.file is None else file.name, found)
    print(table)
    if options.write:
        write_page(PAGE, NAME, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Ours beside llama-server at usual sizes: bench-peers --sizes.

Each file of `shapes.py` is served by both at once, and each cell is measured at one after the
other, while the other is idle. Prompts are random token ids, so that both get the same ones, and
no cache has them. Sampling is at temperature 1: random weights soon repeat themselves at 0, and
ours would guess that.

What is measured is kept after each cell, and a run goes on where the one before ended.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peers import install
from benchmarks.peers.cells import Failed
from benchmarks.peers.limits import model_size
from benchmarks.peers.peers import ROOT, Context, llama_server, ours
from benchmarks.peers.processes import Running, free_port
from benchmarks.peers.questions import SETTLING_SECONDS
from benchmarks.peers.shapes import SHAPES

SIDES = ("ours", "llamacpp")
MOST_TOKENS = 8704  # of a sequence
SLOTS, ROOM = 8, 12288  # of llama-server, for all sequences together
SHORT, LONG = 430, 8000  # tokens of a prompt
ALONE, EACH = 48, 24  # tokens of an answer: of one stream, of each of eight
BEHIND = 24  # tokens of an answer to the long prompt
START_SECONDS, REQUEST_SECONDS = 300.0, 1500.0
ORDINARY_IDS = range(1000, 30000)


@dataclass(frozen=True)
class Cell:
    """What is measured together: tokens a second, by name."""

    key: str
    numbers: tuple[str, ...]
    rounds: int


CELLS = {
    cell.key: cell
    for cell in (
        Cell("1", ("streams_1",), 3),
        Cell("8", ("streams_8",), 2),
        Cell("430", ("prompt_430",), 3),
        Cell("8000", ("prompt_8000", "behind_8000"), 1),
    )
}


class Store:
    """Everything measured so far, by file, side and number; written after each cell."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self.data: dict[str, Any] = {"files": {}}
        if not fresh:
            with contextlib.suppress(OSError, ValueError):
                self.data = json.loads(path.read_text())

    def values(self, file: str, side: str, number: str) -> list[float]:
        values: list[float] = self._file(file).setdefault(side, {}).setdefault(number, [])
        return values

    def facts(self, file: str) -> dict[str, Any]:
        """What is known of a file beside what is measured."""
        facts: dict[str, Any] = self._file(file).setdefault("facts", {})
        return facts

    def missing(self, file: str, cell: Cell) -> int:
        """How many rounds of a cell are still to be measured."""
        done = (len(self.values(file, side, cell.numbers[-1])) for side in SIDES)
        return max(cell.rounds - min(done), 0)

    def save(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1) + "\n")
        part.replace(self._path)

    def _file(self, file: str) -> dict[str, Any]:
        found: dict[str, Any] = self.data["files"].setdefault(file, {})
        return found


class Sizes:
    """Measures what is missing in `store` until `seconds` are over."""

    def __init__(self, context: Context, store: Store, logs: Path, seconds: float) -> None:
        self._context = context
        self._store = store
        self._logs = logs
        self._deadline = time.monotonic() + seconds
        self._random = random.Random(time.time_ns())

    def run(self, shapes: Sequence[str], kinds: Sequence[str], cells: Sequence[str]) -> bool:
        """Whether all of it is measured now. Raises: CannotInstall."""
        for shape in shapes:
            for kind in kinds:
                file = f"{shape} {kind}"
                asked = [CELLS[key] for key in cells if self._store.missing(file, CELLS[key])]
                if asked and time.monotonic() > self._deadline:
                    return False
                if not asked:
                    continue
                context = self._context
                path = written_shape(context.cache, context.gguf, shape, kind, context.say)
                self._describe(file, shape, path)
                if not self._file(file, path, asked):
                    return False
        return True

    def _file(self, file: str, path: Path, cells: Sequence[Cell]) -> bool:
        say, store = self._context.say, self._store
        say(f"{file}: starting both servers")
        with self._serving(path) as asked:
            for cell in cells:
                for number in range(store.missing(file, cell)):
                    if time.monotonic() > self._deadline:
                        return False
                    for side in SIDES if number % 2 else SIDES[::-1]:
                        found = getattr(asked[side], f"cell_{cell.key}")()
                        for name, value in found.items():
                            store.values(file, side, name).append(value)
                    store.save()
                    say(f"{file}: {self._told(file, cell)}")
        return True

    def _describe(self, file: str, name: str, path: Path) -> None:
        shape, size = SHAPES[name], model_size(path)
        self._store.facts(file).update(
            title=shape.title,
            size=path.stat().st_size,
            weights=size.weights,
            head_weights=size.head,
            bytes=size.bytes,
            attention=shape.attention_operations,
        )

    def _told(self, file: str, cell: Cell) -> str:
        def last(name: str) -> str:
            return " : ".join(f"{self._store.values(file, side, name)[-1]:.2f}" for side in SIDES)

        return "; ".join(f"{name} {last(name)}" for name in cell.numbers)

    @contextlib.contextmanager
    def _serving(self, path: Path) -> Iterator[dict[str, Asked]]:
        """Both servers, up and warm. Raises: Failed."""
        servers = {
            "ours": ours(self._context, str(path), "--max-model-len", str(MOST_TOKENS)),
            "llamacpp": llama_server(self._context, path, SLOTS, ROOM),
        }
        with contextlib.ExitStack() as stack:
            asked = {}
            for side, server in servers.items():
                port = free_port()
                command = [part.replace("{port}", str(port)) for part in server.command]
                log = self._logs / f"sizes-{side}.log"
                running = Running(command, log, server.environment)
                stack.callback(running.stop)
                asked[side] = Asked(f"http://127.0.0.1:{port}", self._random)
                _wait(asked[side], running)
            self._store.data["versions"] = {side: one.version for side, one in servers.items()}
            self._store.data["versions"]["commit"] = install.commit_of(ROOT)
            yield asked


def written_shape(cache: Path, tokenizer: Path, shape: str, kind: str, say: install.Say) -> Path:
    """The file of a shape, written where it is not there. Raises: CannotInstall."""
    folder = cache / "shapes"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{shape}.{kind}.gguf"
    if not path.exists():
        say(f"writing {path}")
        python = Path(sys.executable)
        if find_spec("gguf") is None:
            python = install.gguf(cache, say)
        program = ["-m", "benchmarks.peers.write_shape", shape, kind]
        command = [str(python), *program, str(tokenizer), str(path)]
        install.run(command, 600, {"PYTHONPATH": str(ROOT)})
    return path


def _wait(asked: Asked, running: Running) -> None:
    """Until it answers. Raises: Failed."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and not running.ended:
        try:
            asked.ask(asked.ids(4), 2)
        except (NotYet, OSError):
            time.sleep(0.2)
        else:
            time.sleep(SETTLING_SECONDS)
            return
    raise Failed(f"it did not start: {running.last_words()}")


class NotYet(Failed):
    """The server is still loading its model."""


class Asked:
    """One server. Each cell gives tokens a second, by name."""

    def __init__(self, url: str, source: random.Random) -> None:
        self._url = url
        self._random = source
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ids(self, count: int) -> list[int]:
        """A prompt that nobody has seen."""
        return self._random.choices(ORDINARY_IDS, k=count)

    def ask(self, prompt: list[int], tokens: int) -> float:
        """Seconds of an answer of so many tokens. Raises: Failed."""
        body = {"model": "any", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
        body |= {"temperature": 1.0, "seed": self._random.randrange(1 << 30)}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self._url}/v1/completions", json.dumps(body).encode(), headers
        )
        begun = time.perf_counter()
        try:
            with self._opener.open(request, timeout=REQUEST_SECONDS) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            kind = NotYet if error.code == 503 else Failed
            raise kind(f"{error.code}: {error.read(300).decode(errors='replace')}") from error
        seconds = time.perf_counter() - begun
        given = told["usage"]["completion_tokens"]
        if given != tokens:
            raise Failed(f"{given} tokens instead of {tokens}")
        return seconds

    def cell_1(self) -> dict[str, float]:
        """One stream, behind its first token."""
        first = statistics.median(self.ask(self.ids(8), 1) for _ in range(3))
        return {"streams_1": ALONE / (self.ask(self.ids(8), ALONE + 1) - first)}

    def cell_8(self) -> dict[str, float]:
        """Eight begun at once, from the first request to the last token."""
        prompts = [self.ids(8) for _ in range(8)]
        begun = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda prompt: self.ask(prompt, EACH), prompts))
        return {"streams_8": 8 * EACH / (time.perf_counter() - begun)}

    def cell_430(self) -> dict[str, float]:
        return {"prompt_430": SHORT / self.ask(self.ids(SHORT), 1)}

    def cell_8000(self) -> dict[str, float]:
        """The prompt; then an answer to it, which both servers' caches have by then."""
        prompt = self.ids(LONG)
        seconds = self.ask(prompt, 1)
        first = self.ask(prompt, 1)
        behind = BEHIND / (self.ask(prompt, BEHIND + 1) - first)
        return {"prompt_8000": LONG / seconds, "behind_8000": behind}

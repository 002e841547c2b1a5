"""What rounding costs: a model's answers to this project's own documentation, beside exact ones.

    scripts/perplexity [--tokens 2560] [MODEL ...]
    scripts/perplexity --table

For each GGUF file or folder: perplexity as served, and in float32 throughout over the very weights
of the file (numpy); the KL divergence between them, in nats a token; in how many places the
likeliest token is the same. The text is cut into windows of 512 tokens, of which the second halves
count.

--table: the bundled model in every type, requantised by llama.cpp's tool, beside llama.cpp on the
same files, text and places; written into docs/notes/performance.md, and as numbers into
docs/notes/rounding.json, from which the tables of speed have the perplexity of their rows. It
builds llama.cpp where scripts/bench-peers hasn't yet, and takes some ten minutes more.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.output import write_page
from benchmarks.peers import install, quality
from maestrale.config.paths import default_cache_dir
from maestrale.config.settings import BUNDLED_MODEL
from maestrale.engines.cpu.decoder import Batch, Decoder, load_decoder
from maestrale.engines.cpu.kernel.build import library
from maestrale.engines.cpu.kv_cache import BLOCK_SIZE
from maestrale.engines.cpu.model_files import open_model
from maestrale.models.machine_limits import available_cores
from maestrale.models.prepared import load_prepared, weights_path
from maestrale.models.resolve import prepare
from maestrale.prompt.encode import encoder_for
from numpy_decoder import NumpyDecoder

WINDOW = 512  # tokens
FIRST = WINDOW // 2  # the first place of a window that counts
ROOT = Path(__file__).parents[1]
PAGES = (
    "notes/architecture", "notes/reliability", "reference/api", "reference/settings",
    "guide/models", "guide/verify", "guide/replicas", "guide/machine", "guide/many",
)  # fmt: skip
KINDS = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q4_0", "Q4_1",
    "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS", "Q3_K_M", "Q2_K",
)  # fmt: skip
OWN = "Q4_1"  # the bundled file's
PAGE, NAME = ROOT / "docs" / "notes" / "performance.md", "rounding"  # of the table

Rows = NDArray[np.float64]
Logits = Callable[[list[int]], NDArray[np.float32]]


@dataclass
class Score:
    """What the places of a text add up to."""

    places: int = 0
    loss: float = 0.0
    divergence: float = 0.0
    same: int = 0

    def add(self, found: Rows, exact: Rows, targets: list[int]) -> None:
        """Some places: log probabilities [places, vocab], and the tokens that follow."""
        self.places += len(targets)
        self.loss -= float(found[np.arange(len(targets)), targets].sum())
        self.divergence += float((np.exp(exact) * (exact - found)).sum())
        self.same += int((found.argmax(axis=1) == exact.argmax(axis=1)).sum())

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss / self.places)

    @property
    def kl(self) -> float:
        """Nats a token."""
        return self.divergence / self.places

    @property
    def alike(self) -> str:
        """In how many places the likeliest token is the exact one's."""
        return f"{100 * self.same / self.places:.1f} %"


def log_probabilities(logits: NDArray[np.float32]) -> Rows:
    """In float64. As llama.cpp's tool keeps them, down to e^-16 of the likeliest one's."""
    rows: Rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return np.maximum(rows, rows.max(axis=1, keepdims=True) - 16)


def served(decoder: Decoder) -> Logits:
    """Of the places of a window that count, as served."""

    def logits(tokens: list[int]) -> NDArray[np.float32]:
        blocks = WINDOW // BLOCK_SIZE
        arrays = (tokens, [0], [0, WINDOW], range(blocks), [0, blocks], range(FIRST, WINDOW - 1))
        return decoder.step(Batch(*(np.array(each, np.int32) for each in arrays)))

    return logits


def opened(path: Path) -> tuple[Logits, Logits]:
    """A model as served, and exactly: logits of the places of a window that count."""
    kernel = library(default_cache_dir(), lambda *_: None)
    decoder = load_decoder(path, kernel, context=WINDOW, threads=available_cores())
    decoder.open_cache(WINDOW // BLOCK_SIZE)
    exact = NumpyDecoder(open_model(path), WINDOW)
    return served(decoder), lambda tokens: exact.logits(tokens)[FIRST:-1]


def measure(model: str, most: int) -> str:
    """A line of what is printed."""
    folder = prepare(model, default_cache_dir(), lambda *_: None)
    tokens = list(encoder_for(folder).encode_text(text()))
    ours, exact = opened(weights_path(load_prepared(folder), folder))
    found, reference = Score(), Score()
    for number in range(min(most, len(tokens)) // WINDOW):
        window = tokens[number * WINDOW : (number + 1) * WINDOW]
        targets, truth = window[FIRST + 1 :], log_probabilities(exact(window))
        found.add(log_probabilities(ours(window)), truth, targets)
        reference.add(truth, truth, targets)
    return (
        f"{Path(model).name:40} {found.perplexity:10.3f} {reference.perplexity:10.3f} "
        f"{found.kl:10.4f} {found.alike:>11}"
    )


def text() -> str:
    """Pages of the documentation."""
    return "\n".join((ROOT / "docs" / f"{page}.md").read_text() for page in PAGES)


def windows_of(file: Path) -> Iterator[tuple[list[int], Rows]]:
    """What llama.cpp's tool wrote: for each window its tokens, and log probabilities of the places
    that count."""
    raw = np.memmap(file, np.uint8, "r")
    length, vocab, count = struct.unpack("<iii", raw[8:20].tobytes())
    end = 20 + 4 * length * count
    tokens = np.asarray(raw[20:end]).view(np.int32).reshape(count, length)
    width = (vocab + 1) // 2 * 2 + 4  # of a place: step, least value (float32), then 16 bits each
    places = raw[end:].reshape(count, -1, 2 * width)
    for window, of_window in zip(tokens, places, strict=True):
        table = np.array(of_window)
        steps = table[:, :8].copy().view(np.float32).astype(np.float64)
        values = table[:, 8:].copy().view(np.uint16)[:, :vocab].astype(np.float64)
        yield window.tolist(), values * steps[:, :1] + steps[:, 1:]


class Row(NamedTuple):
    """A type in the table."""

    kind: str
    exact: Score
    ours: Score
    theirs: Score

    @property
    def told(self) -> str:
        ours, theirs = self.ours, self.theirs
        return (
            f"| {self.kind} | {self.exact.perplexity:.2f} | {ours.perplexity:.2f} | "
            f"{ours.kl:.4f} | {ours.alike} | {theirs.perplexity:.2f} | "
            f"{theirs.kl:.4f} | {theirs.alike} |"
        )

    @property
    def numbers(self) -> dict[str, float]:
        return {
            "exact": round(self.exact.perplexity, 3),
            "ours": round(self.ours.perplexity, 3),
            "llamacpp": round(self.theirs.perplexity, 3),
        }


def row(kind: str, model: Path, cache: Path, most: int) -> Row:
    """Both sides of a file, measured."""
    page, base = cache / "rounding.md", cache / "rounding.bin"
    page.write_text(text())
    tool = install.llamacpp(cache, print) / "llama-perplexity"
    threads = str(available_cores())
    command = [str(tool), "-m", str(model), "-f", str(page), "-c", str(WINDOW), "-t", threads]
    command += ["--chunks", str(most // WINDOW), "--kl-divergence-base", str(base)]
    subprocess.run(command, check=True, capture_output=True)
    logits, exact = opened(model)
    ours, theirs, reference = Score(), Score(), Score()
    for window, peer in windows_of(base):
        targets, truth = window[FIRST + 1 :], log_probabilities(exact(window))
        ours.add(log_probabilities(logits(window)), truth, targets)
        theirs.add(peer, truth, targets)
        reference.add(truth, truth, targets)
    base.unlink()
    return Row(kind, reference, ours, theirs)


def table(most: int, cache: Path) -> None:
    """Measures all types, and writes the documentation's table."""
    bundled = weights_path(
        load_prepared(folder := prepare(BUNDLED_MODEL, default_cache_dir(), lambda *_: None)),
        folder,
    )
    lines = [
        "| type | perplexity, exact | here | KL | same token | llama.cpp | KL | same token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    numbers = {}
    for kind in KINDS:
        model = bundled if kind == OWN else install.requantised(cache, bundled, kind, print)
        found = row(kind, model, cache, most)
        numbers[kind] = found.numbers
        lines.append(found.told)
        print(lines[-1], flush=True)
    quality.FILE.write_text(json.dumps(numbers, indent=1) + "\n")
    write_page(PAGE, NAME, "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=5 * WINDOW)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cache", help="where the peers are, as scripts/bench-peers has it")
    parser.add_argument("models", nargs="*", default=[BUNDLED_MODEL], metavar="MODEL")
    options = parser.parse_args()
    if options.table:
        cache = options.cache or default_cache_dir().with_name("maestrale-peers")
        Path(cache).mkdir(parents=True, exist_ok=True)
        return table(options.tokens, Path(cache))
    print(f"{'model':40} {'served':>10} {'exact':>10} {'KL':>10} {'same':>11}")
    for model in options.models:
        print(measure(model, options.tokens), flush=True)
    return None


if __name__ == "__main__":
    main()

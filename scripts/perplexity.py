"""What rounding costs: a model's answers to this project's own documentation, beside exact ones.

    scripts/perplexity [--tokens 2560] [MODEL ...]

For each GGUF file or folder: perplexity as served (activations and KV cache in 8 bits) and with
both in float32 over the very same weights; the KL divergence between them, in nats a token; in how
many places the likeliest token is the same. The text is cut into windows of 512 tokens; each token
but the first of a window is predicted from those before it. Exact arithmetic is slow: a minute or
more for the bundled model.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maestrale.config.paths import default_cache_dir
from maestrale.config.settings import BUNDLED_MODEL
from maestrale.engines.cpu.decoder import Batch, Decoder, load_decoder
from maestrale.engines.cpu.kernel.build import library
from maestrale.engines.cpu.kv_cache import BLOCK_SIZE
from maestrale.models.machine_limits import available_cores
from maestrale.models.prepared import load_prepared, weights_path
from maestrale.models.resolve import prepare
from maestrale.prompt.encode import encoder_for

WINDOW = 512  # tokens
PAGES = (
    "notes/architecture",
    "notes/reliability",
    "reference/api",
    "guide/verify",
)

Rows = NDArray[np.float64]


def log_probabilities(decoder: Decoder, tokens: list[int]) -> Rows:
    """Of a window, float64 [tokens, vocab]."""
    count = len(tokens)
    blocks = -(-count // BLOCK_SIZE)
    arrays = (tokens, [0], [0, count], range(blocks), [0, blocks], range(count))
    logits = decoder.step(Batch(*(np.array(each, np.int32) for each in arrays)))
    rows: Rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def loss(rows: Rows, tokens: list[int]) -> float:
    """The sum of -log p over the tokens but the first."""
    return -float(rows[np.arange(len(tokens) - 1), tokens[1:]].sum())


def measure(model: str, most: int) -> str:
    """A line of the table."""
    folder = prepare(model, default_cache_dir(), lambda *_: None)
    path = weights_path(load_prepared(folder), folder)
    docs = Path(__file__).parents[1] / "docs"
    text = "\n".join((docs / f"{page}.md").read_text() for page in PAGES)
    tokens = list(encoder_for(folder).encode_text(text))
    windows = min(most, len(tokens)) // WINDOW
    kernel = library(default_cache_dir(), lambda *_: None)
    decoders = [
        load_decoder(path, kernel, context=WINDOW, threads=available_cores(), exact=exact)
        for exact in (False, True)
    ]
    for decoder in decoders:
        decoder.open_cache(WINDOW // BLOCK_SIZE)
    losses, divergence, same = [0.0, 0.0], 0.0, 0
    for number in range(windows):
        window = tokens[number * WINDOW : (number + 1) * WINDOW]
        served, exact = (log_probabilities(decoder, window) for decoder in decoders)
        losses[0] += loss(served, window)
        losses[1] += loss(exact, window)
        divergence += float((np.exp(exact) * (exact - served)).sum())
        same += int((served.argmax(axis=1) == exact.argmax(axis=1)).sum())
    count = windows * (WINDOW - 1)
    served_ppl, exact_ppl = (math.exp(each / count) for each in losses)
    places = windows * WINDOW
    return (
        f"{Path(model).name:40} {served_ppl:10.3f} {exact_ppl:10.3f} {divergence / places:10.4f} "
        f"{100 * same / places:9.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=5 * WINDOW)
    parser.add_argument("models", nargs="*", default=[BUNDLED_MODEL], metavar="MODEL")
    options = parser.parse_args()
    print(f"{'model':40} {'served':>10} {'exact':>10} {'KL':>10} {'same':>11}")
    for model in options.models:
        print(measure(model, options.tokens), flush=True)


if __name__ == "__main__":
    main()

"""Perplexity of the bundled model on this project's own documentation, for each form of weights.

    scripts/perplexity [--tokens 5632] [--model MODEL]

The text is cut into windows of 512 tokens; each token but the first of a window is predicted
from those before it. Lower is better; what counts is the difference between the rows.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from maestrale.engines.openvino.graph import PagedModel

from maestrale.config import BUNDLED_MODEL, default_cache_dir
from maestrale.engines.base import WeightFormat
from maestrale.engines.cpu.kv_cache import BLOCK_SIZE
from maestrale.engines.cpu.machine import available_cores
from maestrale.engines.cpu.step import StepInput
from maestrale.models.resolve import prepare
from maestrale.prompt.encode import encoder_for

WINDOW = 512  # tokens
STEP = 64  # tokens computed at once
FORMATS: tuple[WeightFormat, ...] = ("original", "int8", "a8")
PAGES = ("architecture", "reliability", "api", "replay", "verify")


def window_loss(model: PagedModel, tokens: list[int]) -> float:
    """The sum of -log p over the tokens of a window but its first."""
    loss = 0.0
    for start in range(0, WINDOW, STEP):
        end = start + STEP
        blocks = -(-end // BLOCK_SIZE)
        logits = model.infer(
            StepInput(
                token_ids=np.array(tokens[start:end]),
                positions=np.arange(start, end),
                past_lens=np.array([start], np.int32),
                sequence_begins=np.array([0, STEP], np.int32),
                block_indices=np.arange(blocks, dtype=np.int32),
                block_begins=np.array([0, blocks], np.int32),
                logit_rows=np.arange(STEP),
                max_context_len=end,
            )
        ).astype(np.float64)
        targets = tokens[start + 1 : end + 1]
        rows = logits[: len(targets)]
        best = rows.max(axis=1)
        log_sums = np.log(np.exp(rows - best[:, None]).sum(axis=1)) + best
        loss += float((log_sums - rows[np.arange(len(targets)), targets]).sum())
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=11 * WINDOW)
    parser.add_argument("--model", default=BUNDLED_MODEL)
    options = parser.parse_args()
    folder = prepare(options.model, default_cache_dir(), lambda *_: None)
    docs = Path(__file__).parents[1] / "docs"
    text = "\n".join((docs / f"{page}.md").read_text() for page in PAGES)
    tokens = list(encoder_for(folder).encode_text(text))
    windows = min(options.tokens, len(tokens)) // WINDOW
    for weight_format in FORMATS:
        model = PagedModel(
            folder,
            kv_cache_bytes=256 << 20,
            threads=available_cores(),
            deterministic=True,
            weight_format=weight_format,
        )
        loss = sum(
            window_loss(model, tokens[i * WINDOW : (i + 1) * WINDOW]) for i in range(windows)
        )
        count = windows * (WINDOW - 1)
        print(f"{weight_format:8} {math.exp(loss / count):.3f}  over {count} tokens", flush=True)


if __name__ == "__main__":
    main()

"""The perplexity of the bundled model's weights in each type, by `scripts/perplexity --table`.

Tables of speed name it, so that nobody compares speeds at unequal quality.
"""

from __future__ import annotations

import json

from benchmarks.peers.peers import ROOT

FILE = ROOT / "docs" / "notes" / "rounding.json"


def perplexity(kind: str, side: str) -> str:
    """Of a type of weights, "exact", "ours" or "llamacpp"; "?" where it was not measured."""
    try:
        return f"{json.loads(FILE.read_text())[kind][side]:.2f}"
    except (OSError, ValueError, KeyError):
        return "?"

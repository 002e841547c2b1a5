"""The golden files as tests use them."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving import ROOT
from tiny_families import BY_NAME
from tiny_models import TinyModel, write_folder

GOLDEN = ROOT / "tests" / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npy"))


def model(name: str) -> TinyModel:
    """A tiny model."""
    return BY_NAME[name]


def logits(name: str) -> NDArray[np.float32]:
    """What transformers computes of its text, [tokens, vocab]."""
    loaded: NDArray[np.float32] = np.load(GOLDEN / f"{name}.npy")
    return loaded


def gguf_file(name: str, folder: Path) -> Path:
    """The GGUF file that llama.cpp's converter makes of it."""
    path = folder / f"{name}.gguf"
    path.write_bytes(lzma.decompress((GOLDEN / f"{name}.gguf.xz").read_bytes()))
    return path


def hf_folder(name: str, folder: Path, dtype: str = "BF16", shards: int = 1) -> Path:
    """Its folder of safetensors."""
    return write_folder(model(name), folder / name, dtype, shards)


def kl_divergence(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Of the distributions over the next token, the mean over all rows, in nats."""
    p, q = _log_softmax(reference), _log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result

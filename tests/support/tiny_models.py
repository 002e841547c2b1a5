"""Tiny random models of every family, the same on every machine: config.json and weights by name.

Values are whole numbers up to 127 times a power of two, and each group of 32 along a row has one
of 127: BF16, F16, Q8_0 and the kernel's 8 bits hold them exactly. `tests/golden/make` lets
transformers compute their logits and llama.cpp's converter make GGUF files of them.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

VOCAB = 288
TOKENS = 40  # of the text whose logits are compared
GROUP = 32
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4 = np.array([*_POSITIVE, *(-each for each in _POSITIVE)], np.float32)


@dataclass(frozen=True)
class TinyModel:
    """`config` as config.json has it; `shapes`: tensor → shape, experts' counts before.

    `kind`: the class of transformers. `tokens`: of its text. `transposed`: ends of names of tensors
    whose rows are columns; `mxfp4`: of those with values of MXFP4.
    """

    name: str
    kind: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    tokens: int = TOKENS
    transposed: tuple[str, ...] = ()
    mxfp4: tuple[str, ...] = ()
    norm_centre: float = 1.0

    def text(self) -> list[int]:
        """The tokens of its text."""
        return generator(self.name, "text").randint(0, VOCAB, self.tokens).tolist()

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """All tensors by name, float32."""
        return {name: self._values(name, shape) for name, shape in self.shapes.items()}

    def stored(self) -> dict[str, NDArray[Any]]:
        """All tensors as the model's folder has them: those of MXFP4 as blocks and scales."""
        found: dict[str, NDArray[Any]] = {}
        for name, shape in self.shapes.items():
            if name.endswith(self.mxfp4) if self.mxfp4 else False:
                codes, scales = self._codes(name, shape)
                pairs = codes[..., 0::2] | codes[..., 1::2] << 4
                found[f"{name}_blocks"] = pairs.reshape(*scales.shape, 16)
                found[f"{name}_scales"] = scales
            else:
                found[name] = self._values(name, shape)
        return found

    def _codes(
        self, name: str, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """MXFP4: codes [experts, rows, columns], and the scales of 32 columns each."""
        random = generator(self.name, name)
        size = (*shape[:-2], shape[-1], shape[-2])
        codes = random.randint(0, 16, size).astype(np.uint8)
        scales = random.randint(122, 125, (*size[:-1], size[-1] // 32)).astype(np.uint8)
        return codes, scales

    def _values(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if name.endswith(self.mxfp4) if self.mxfp4 else False:
            codes, scales = self._codes(name, shape)
            powers = np.ldexp(np.float32(1), scales.astype(np.int32) - 127)
            return np.ascontiguousarray((FP4[codes] * np.repeat(powers, 32, -1)).swapaxes(-1, -2))
        random = generator(self.name, name)
        if len(shape) == 1 or name.endswith("_bias"):
            centre = self.norm_centre if "norm" in name else 0.0
            spread = random.randint(-40, 41, shape).astype(np.float32)
            return np.float32(centre) + spread / np.float32(64)
        turned = name.endswith(self.transposed) if self.transposed else False
        size = (*shape[:-2], shape[-1], shape[-2]) if turned else shape
        whole = random.randint(-7, 8, size) * 16
        groups = whole.reshape(-1, size[-1])
        for begin in range(0, size[-1], GROUP):
            width = min(GROUP, size[-1] - begin)
            places = begin + random.randint(0, width, len(groups))
            groups[np.arange(len(groups)), places] = 127 * random.choice([-1, 1], len(groups))
        values = whole.astype(np.float32) / np.float32(512)
        return np.ascontiguousarray(values.swapaxes(-1, -2)) if turned else values


def generator(*names: str) -> np.random.RandomState:
    """Random numbers that depend on names alone (numpy keeps RandomState's for ever)."""
    return np.random.RandomState(crc32("/".join(names).encode()))


def write_folder(model: TinyModel, folder: Path, dtype: str = "F32", shards: int = 1) -> Path:
    """The model as a Hugging Face folder of safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(model.config)
    if model.mxfp4:
        config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    weights = list(model.stored().items())
    if shards == 1:
        write_safetensors(folder / "model.safetensors", dict(weights), dtype)
        return folder
    index: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(weights[number::shards])
        write_safetensors(folder / name, part, dtype)
        index |= dict.fromkeys(part, name)
    table = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return folder


def write_safetensors(
    path: Path, weights: dict[str, NDArray[Any]], dtype: str, *, checked: bool = True
) -> None:
    """One file; arrays of uint8 stay as they are. `checked`: the type must hold all values."""
    header: dict[str, Any] = {}
    blobs: list[bytes] = []
    at = 0
    for name, values in weights.items():
        kind = "U8" if values.dtype == np.uint8 else dtype
        blob = encoded(values, kind) if checked else values.tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [at, at + len(blob)],
        }
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def encoded(values: NDArray[Any], dtype: str) -> bytes:
    """Numbers as a file has them; what isn't exact in the type is an error of the test."""
    if dtype == "U8":
        return values.tobytes()
    if dtype == "BF16":
        bits = values.astype(np.float32).view(np.uint32)
        assert not (bits & 0xFFFF).any(), "not exact in BF16"
        return (bits >> 16).astype(np.uint16).tobytes()
    typed = values.astype({"F32": np.float32, "F16": np.float16}[dtype])
    assert (typed.astype(np.float32) == values).all(), f"not exact in {dtype}"
    return typed.tobytes()


def dense(
    config: dict[str, Any], *, qkv_bias: bool = False, head_norms: bool = False
) -> dict[str, Any]:
    """The tensors of a llama-like model."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head
    width = config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }
    for i in range(layers):
        layer = f"model.layers.{i}."
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"{layer}self_attn.{part}_proj.weight"] = (rows, hidden)
            if qkv_bias:
                shapes[f"{layer}self_attn.{part}_proj.bias"] = (rows,)
        if head_norms:
            for part in ("q", "k"):
                shapes[f"{layer}self_attn.{part}_norm.weight"] = (head,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (hidden, queries)
        shapes[f"{layer}mlp.gate_proj.weight"] = (width, hidden)
        shapes[f"{layer}mlp.up_proj.weight"] = (width, hidden)
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, width)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{norm}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes

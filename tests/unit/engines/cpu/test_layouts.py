"""The same model however its tensors are laid out, and in every type that is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import golden_files as golden
from kernel_steps import computed
from maestrale.engines.cpu.decoder import load_decoder
from maestrale.engines.cpu.model_files import open_model, spec_of
from maestrale.models.tensor_info import EXACT_TYPES, MATRIX_TYPES
from numpy_decoder import NumpyDecoder
from rewritten_gguf import Tensors, rewritten
from tiny_models import generator


def fused_attention(tensors: Tensors) -> None:
    """Queries, keys and values in one, as `--fuse-qkv` of llama.cpp's converter has them."""
    for layer in range(2):
        for end in ("weight", "bias"):
            names = [f"blk.{layer}.attn_{part}.{end}" for part in "qkv"]
            if names[0] in tensors:
                parts = [tensors.pop(name) for name in names]
                tensors[f"blk.{layer}.attn_qkv.{end}"] = np.concatenate(parts)


def fused_experts(tensors: Tensors) -> None:
    """Gate and up in one, as `--fuse-gate-up-exps` has them."""
    for layer in range(2):
        names = [f"blk.{layer}.ffn_{part}_exps.weight" for part in ("gate", "up")]
        parts = [tensors.pop(name) for name in names]
        tensors[f"blk.{layer}.ffn_gate_up_exps.weight"] = np.concatenate(parts, 1)


def single_experts(tensors: Tensors) -> None:
    """Each expert's tensors by themselves, as the first files of Mixtral have them."""
    for layer in range(2):
        for part in ("gate", "up", "down"):
            experts = tensors.pop(f"blk.{layer}.ffn_{part}_exps.weight")
            for number, one in enumerate(experts):
                tensors[f"blk.{layer}.ffn_{part}.{number}.weight"] = np.ascontiguousarray(one)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nemo", fused_attention),
        ("qwen2", fused_attention),
        ("mixtral", fused_experts),
        ("mixtral", single_experts),
    ],
)
def test_a_model_laid_out_otherwise_is_the_same(
    name: str, change: Callable[[Tensors], None], tmp_path: Path
) -> None:
    path = golden.gguf_file(name, tmp_path)
    other = rewritten(path, tmp_path / "other.gguf", lambda values, tensors: change(tensors))
    logits = NumpyDecoder(open_model(other)).logits(golden.model(name).text())
    np.testing.assert_allclose(logits, golden.logits(name), atol=1e-4)
    assert spec_of(other).parameters == spec_of(path).parameters


# Where a block's scales are, if not at its beginning.
PLACES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)}


def random_rows(kind: str, rows: int, columns: int) -> np.ndarray:
    """Random weights in a type: whatever the bits say, with scales that are small."""
    number = gguf.GGMLQuantizationType[kind]
    random = generator(kind, str(rows), str(columns))
    if kind in ("F32", "F16", "BF16"):
        values = (random.standard_normal((rows, columns)) / 16).astype(np.float32)
        return gguf.quantize(values, number)
    elements, size = gguf.GGML_QUANT_SIZES[number]
    blocks = random.randint(0, 256, (rows * columns // elements, size)).astype(np.uint8)
    small = np.frombuffer(np.float16(2.0**-9 if elements == 32 else 2.0**-14).tobytes(), np.uint8)
    if kind.startswith("TQ"):  # values of -1, 0 and 1
        small = np.frombuffer(np.float16(2.0**-4).tobytes(), np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = 122
    elif kind == "IQ1_M":  # the scale's four digits are the highest of four words
        for place, digit in zip((49, 51, 53, 55), (0x0, 0x0, 0x40, 0x0), strict=True):
            blocks[:, place] = blocks[:, place] & 0x0F | digit
    elif kind in PLACES:
        for place in PLACES[kind]:
            blocks[:, place : place + 2] = small
    else:
        blocks[:, :2] = small
        if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K"):
            blocks[:, 2:4] = small
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", sorted(MATRIX_TYPES))
def test_a_model_of_every_type_is_computed_as_it_is_dequantised(
    kernel: Path, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "typed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256)}
    shapes |= {"attn_output": (256, 256), "ffn_gate": (512, 256), "ffn_up": (512, 256)}
    matrices = {f"blk.0.{name}": shape for name, shape in shapes.items()}
    matrices |= {"blk.0.ffn_down": (256, 512), "token_embd": (96, 256), "output": (96, 256)}
    for name, shape in matrices.items():
        data = random_rows(kind, *shape)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokens = generator("typed").randint(0, 96, 12).tolist()
    expected = NumpyDecoder(open_model(path)).logits(tokens)
    decoder = load_decoder(path, kernel, context=64, threads=2, exact=True)
    logits = computed(decoder, tokens)
    decoder.close()
    assert np.abs(expected).max() > 0.01
    scale = np.abs(expected).max()
    if kind in EXACT_TYPES:
        np.testing.assert_allclose(logits, expected, atol=1e-4 * scale)
    else:  # rounded to 8 bits
        assert golden.kl_divergence(logits, expected) < 0.001

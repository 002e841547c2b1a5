"""Writes a model of one of `shapes.py`'s shapes as a GGUF file, with random weights.

    python -m benchmarks.peers.write_shape SHAPE KIND TOKENIZER.gguf OUT.gguf

Run by a Python that has the `gguf` package. Norms have random gains, as trained ones do: gains of
one can be left out, and then another model is measured. The vocabulary is that of the tokenizer's
file, cut or filled up.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.shapes import SHAPES, Shape, Tensor, tensors

POOL = 1 << 16  # random blocks of a type, which tensors take from some place on
Type = gguf.GGMLQuantizationType


def write(path: Path, shape: Shape, kind: str, tokenizer: Path) -> None:
    """The file, whole or not at all."""
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, shape.architecture)
    _describe(writer, shape, kind)
    _add_tokenizer(writer, tokenizer, shape.vocab)
    listed = list(tensors(shape, kind))
    for tensor in listed:
        size = gguf.quant_shape_to_byte_shape(tensor.shape, Type[tensor.type])
        if tensor.type == "F32":
            length = 4 * int(np.prod(tensor.shape))
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), length)
        else:
            length = int(np.prod(size))
            writer.add_tensor_info(tensor.name, size, np.dtype(np.uint8), length, Type[tensor.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    pools = {
        tensor.type: _blocks(random, tensor.type) for tensor in listed if len(tensor.shape) > 1
    }
    for tensor in listed:
        writer.write_tensor_data(_values(random, tensor, pools))
    writer.close()
    part.rename(path)


def _describe(writer: gguf.GGUFWriter, shape: Shape, kind: str) -> None:
    types = {"Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M}
    writer.add_name(f"Random {shape.title}")
    writer.add_file_type(types[kind])
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.width)
    writer.add_value_length(shape.width)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocab)
    if shape.architecture == "llama":
        writer.add_rope_dimension_count(shape.width)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
        writer.add_expert_feed_forward_length(shape.feed_forward)


def _add_tokenizer(writer: gguf.GGUFWriter, file: Path, size: int) -> None:
    fields = gguf.GGUFReader(file).fields

    def value(key: str) -> Any:
        return fields[f"tokenizer.ggml.{key}"].contents()

    tokens, types = value("tokens")[:size], value("token_type")[:size]
    tokens += [f"filler{number}" for number in range(len(tokens), size)]
    types += [gguf.TokenType.NORMAL] * (size - len(types))
    known = set(tokens)
    merges = [merge for merge in value("merges") if merge.replace(" ", "") in known]
    writer.add_tokenizer_model(value("model"))
    writer.add_tokenizer_pre(value("pre"))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(value("bos_token_id"))
    writer.add_eos_token_id(value("eos_token_id"))
    writer.add_add_bos_token(False)


def _values(
    random: np.random.Generator, tensor: Tensor, pools: dict[str, NDArray[np.uint8]]
) -> NDArray[Any]:
    """Weights that leave activations about as large as they were."""
    if tensor.name == "rope_freqs.weight":
        return np.geomspace(1, 8, tensor.shape[0]).astype(np.float32)
    if len(tensor.shape) == 1:
        return random.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
    deviation = tensor.shape[-1] ** -0.5
    if tensor.type == "F32":
        return random.normal(0, deviation, tensor.shape).astype(np.float32)
    elements, size = gguf.GGML_QUANT_SIZES[Type[tensor.type]]
    count = int(np.prod(tensor.shape)) // elements
    pool = pools[tensor.type].copy()
    for place, per_deviation in _SCALES[tensor.type]:
        scale = np.array([deviation * per_deviation], "<f2").view(np.uint8)
        pool[:, place : place + 2] = scale
    pool = np.roll(pool, int(random.integers(POOL)), axis=0)
    whole, rest = divmod(count, POOL)
    blocks = np.concatenate([*[pool] * whole, pool[:rest]])
    return blocks.reshape(*tensor.shape[:-1], tensor.shape[-1] // elements * size)


def _blocks(random: np.random.Generator, kind: str) -> NDArray[np.uint8]:
    return random.integers(0, 256, (POOL, gguf.GGML_QUANT_SIZES[Type[kind]][1]), np.uint8)


# Where a block has float16 scales, and how large one is for weights of a standard deviation of one,
# everything else in the block being random. (Of Q4_K the second is the minimums'.)
_SCALES = {
    "Q4_0": ((0, 1 / 4.6),),
    "Q4_K": ((0, 1 / 258), (2, 7.5 / 258)),
    "Q6_K": ((208, 1 / 1367),),
}


if __name__ == "__main__":
    name, kind, tokenizer, out = sys.argv[1:]
    write(Path(out), SHAPES[name], kind, Path(tokenizer))

"""A GGUF file of the llama architecture as a Hugging Face folder with safetensors: what vLLM loads.

Weights are dequantised to float32. llama.cpp turns the rows of the query and key matrices for
its way of rotating; here they are turned back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from maestrale.models.gguf_file import read_gguf
from maestrale.models.gguf_tokenizer import byte_level_tokenizer, end_token_ids, pieces_of
from maestrale.models.mistral_vocabulary import recognise, shipped_file

_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
Matrix = NDArray[np.float32]


def write_hf_folder(source: Path, folder: Path) -> Path:
    """Write `folder` from the GGUF file `source`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = read_gguf(source).metadata
    tensors = dict(_tensors(source, metadata))
    write_safetensors(folder / "model.safetensors", tensors)
    config = _config(metadata, tied="lm_head.weight" not in tensors)
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder, metadata)
    return folder


def write_safetensors(path: Path, tensors: dict[str, Matrix]) -> None:
    """8 bytes with the header's length, the header as JSON, then the tensors' bytes."""
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def _tensors(source: Path, metadata: dict[str, Any]) -> Iterator[tuple[str, Matrix]]:
    heads = metadata["llama.attention.head_count"]
    kv_heads = metadata.get("llama.attention.head_count_kv", heads)
    for tensor in gguf.GGUFReader(source).tensors:
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in _OUTSIDE:
            yield _OUTSIDE[tensor.name], weights
            continue
        _, block, rest = tensor.name.split(".", 2)
        if rest == "attn_q.weight":
            weights = _unrotated(weights, heads)
        elif rest == "attn_k.weight":
            weights = _unrotated(weights, kv_heads)
        yield f"model.layers.{block}.{_IN_BLOCK[rest]}", np.ascontiguousarray(weights)


def _unrotated(weights: Matrix, heads: int) -> Matrix:
    """Rows of each head from pairs (0, half), (1, half + 1), ... back to their order."""
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _config(metadata: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    heads = metadata["llama.attention.head_count"]
    ends = end_token_ids(metadata)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata.get("llama.rope.freq_base", 10_000.0),
        "vocab_size": len(pieces_of(metadata)[0]),
        "tie_word_embeddings": tied,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": list(ends),
    }


def _write_tokenizer(folder: Path, metadata: dict[str, Any]) -> None:
    pieces, _ = pieces_of(metadata)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": pieces[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": pieces[metadata["tokenizer.ggml.eos_token_id"]],
        "chat_template": metadata["tokenizer.chat_template"],
    }
    version = recognise(metadata)
    if version is None:
        document = byte_level_tokenizer(metadata)
        (folder / "tokenizer.json").write_text(json.dumps(document))
    else:
        shutil.copyfile(shipped_file(version), folder / "tokenizer.model")
        settings["tokenizer_class"] = "LlamaTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

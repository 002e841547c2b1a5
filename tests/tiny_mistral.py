"""A tiny Mistral with random weights and the real v1 tokenizer, as a GGUF file.

What llama.cpp's converter writes for Mistral-7B-Instruct-v0.2, two layers deep: architecture
"llama", a SentencePiece vocabulary with scores and types. Its answers are noise; its prompts
and token counts are Mistral's own.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from sentencepiece import SentencePieceProcessor

from maestrale.models.mistral_vocabulary import shipped_file

LAYERS, HIDDEN, FEED_FORWARD, HEADS, KV_HEADS = 2, 64, 128, 4, 2
CONTEXT = 2048
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def write_tiny_mistral(path: Path, *, version: str = "v1", seed: int = 0) -> Path:
    """Write the model to `path` and return it. The same seed gives the same weights."""
    tokenizer = SentencePieceProcessor(model_file=str(shipped_file(version)))
    size = tokenizer.vocab_size()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny Mistral")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, tokenizer, size)
    _add_weights(writer, np.random.default_rng(seed), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: SentencePieceProcessor, size: int) -> None:
    types = []
    for token in range(size):
        if tokenizer.IsUnknown(token):
            types.append(gguf.TokenType.UNKNOWN)
        elif tokenizer.IsControl(token):
            types.append(gguf.TokenType.CONTROL)
        elif tokenizer.IsByte(token):
            types.append(gguf.TokenType.BYTE)
        else:
            types.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([tokenizer.id_to_piece(token) for token in range(size)])
    writer.add_token_scores([tokenizer.get_score(token) for token in range(size)])
    writer.add_token_types(types)
    writer.add_bos_token_id(tokenizer.bos_id())
    writer.add_eos_token_id(tokenizer.eos_id())
    writer.add_unk_token_id(tokenizer.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_weights(writer: gguf.GGUFWriter, random: np.random.Generator, size: int) -> None:
    def matrix(name: str, rows: int, columns: int) -> None:
        weights = random.normal(0, 0.08, (rows, columns))
        writer.add_tensor(name, weights.astype(np.float16))

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))

    kv = HIDDEN // HEADS * KV_HEADS
    matrix("token_embd.weight", size, HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm.weight")
        matrix(f"{block}.attn_q.weight", HIDDEN, HIDDEN)
        matrix(f"{block}.attn_k.weight", kv, HIDDEN)
        matrix(f"{block}.attn_v.weight", kv, HIDDEN)
        matrix(f"{block}.attn_output.weight", HIDDEN, HIDDEN)
        norm(f"{block}.ffn_norm.weight")
        matrix(f"{block}.ffn_gate.weight", FEED_FORWARD, HIDDEN)
        matrix(f"{block}.ffn_up.weight", FEED_FORWARD, HIDDEN)
        matrix(f"{block}.ffn_down.weight", HIDDEN, FEED_FORWARD)
    norm("output_norm.weight")
    matrix("output.weight", size, HIDDEN)

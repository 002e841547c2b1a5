"""Architectures that can't be served, why, and what works instead."""

from __future__ import annotations

from maestrale.errors import ModelError

_HYBRID = "it has recurrent layers"
_LATENT = "its attention is compressed (MLA)"
_ENCODER = "it is an encoder, which makes no text"
_IMAGES = "it is an image or audio part, without a decoder"
_VARIANT = "its layers are of another kind than those served here"

# general.architecture or model_type → why not
_WHY = {
    **dict.fromkeys(
        (
            "mamba", "mamba2", "rwkv6", "rwkv7", "arwkv7", "rwkv6qwen2", "jamba", "falcon-h1",
            "falcon_h1", "falcon_mamba", "lfm2", "lfm2moe", "lfm2_moe", "lfm3", "granitehybrid",
            "granitemoehybrid", "bamba", "nemotron_h", "nemotron_h_moe", "qwen3next", "qwen3_next",
            "qwen35", "qwen35moe", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text",
            "kimi-linear", "kimi_linear", "plamo2", "plamo3", "zamba", "zamba2", "recurrent_gemma",
            "olmo_hybrid", "minimax", "minimax-01", "xlstm",
        ),
        _HYBRID,
    ),
    **dict.fromkeys(
        (
            "deepseek2", "deepseek32", "deepseek4", "deepseek_v2", "deepseek_v3", "deepseek_v32",
            "deepseek_v4", "mistral4", "kimi_k2", "kimi-k3", "minicpm3", "glm_moe_dsa", "glm-dsa",
            "plm", "longcat_flash", "glm4_moe_lite",
        ),
        _LATENT,
    ),
    **dict.fromkeys(
        (
            "bert", "modern-bert", "modernbert", "nomic-bert", "nomic-bert-moe", "neo-bert",
            "eurobert", "jina-bert-v2", "jina-bert-v3", "roberta", "xlm-roberta", "distilbert",
            "gemma-embedding", "llama-embed", "t5", "t5encoder", "electra", "deberta-v2",
        ),
        _ENCODER,
    ),
    **dict.fromkeys(
        ("clip", "siglip", "pixtral", "whisper", "wavtokenizer-dec", "qwen3tts", "pockettts"),
        _IMAGES,
    ),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "llama4"), _VARIANT),
}  # fmt: skip


def refusal(where: str, architecture: str, served: list[str]) -> ModelError:
    """Why a model of this architecture isn't served, and what is."""
    why = _WHY.get(architecture, "which isn't known here")
    reason = why if why.startswith("which") else f"which isn't served: {why}"
    return ModelError(
        f"{where} is a model of the architecture {architecture!r}, {reason}. Served are "
        f"{', '.join(served)}; of these families, SmolLM2, Llama 3, Mistral, Qwen 3 and Gemma 3, "
        "say."
    )

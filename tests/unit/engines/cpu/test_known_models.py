"""Models that people have, by their own config.json: read whole, and as large as they say."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from maestrale.engines.cpu.model_files import spec_of
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.errors import ModelError
from tiny_models import dense

Shapes = dict[str, tuple[int, ...]]

_COMMON: dict[str, Any] = {
    "torch_dtype": "bfloat16", "transformers_version": "4.45.0", "use_cache": True,
    "initializer_range": 0.02, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": [2, 3],
}  # fmt: skip


def folder_of(path: Path, config: dict[str, Any], shapes: Shapes) -> Path:
    """A folder whose weights are a hole in a file: only their names and shapes are read."""
    (path / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2
        for each in shape:
            size *= each
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


def read(path: Path, config: dict[str, Any], shapes: Shapes | None = None) -> DecoderSpec:
    whole = _COMMON | config
    return spec_of(folder_of(path, whole, dense(whole) if shapes is None else shapes))


def llama(hidden: int, mlp: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> Any:
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "vocab_size": vocab, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "tie_word_embeddings": False, **more,
    }  # fmt: skip


_LLAMA3 = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip


def test_llama_3(tmp_path: Path) -> None:
    more = {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "head_dim": 64}
    config = llama(2048, 8192, 16, 32, 8, 128256, rope_scaling=_LLAMA3, rope_theta=500000.0, **more)
    spec = read(tmp_path, config | {"tie_word_embeddings": True})
    assert spec.parameters == 1_235_814_400
    assert spec.tied
    assert spec.ropes[0].inverse_frequencies[0] == 1.0
    assert spec.ropes[0].inverse_frequencies[-1] < 500000**-0.97 / 30


def test_smollm2(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "is_llama_config": True,
        "rope_interleaved": False,
        "rope_scaling": None,
    }
    more |= {"transformers.js_config": {"dtype": {}}, "tie_word_embeddings": True}
    spec = read(tmp_path, llama(576, 1536, 30, 9, 3, 49152, **more))
    assert spec.parameters == 134_515_008


def test_mistral_7b_has_its_window_in_v0_1_alone(tmp_path: Path) -> None:
    old = llama(4096, 14336, 32, 32, 8, 32000, model_type="mistral", sliding_window=4096)
    new = llama(4096, 14336, 32, 32, 8, 32768, model_type="mistral", sliding_window=None)
    spec = read(tmp_path, old)
    assert spec.parameters == 7_241_732_096
    assert spec.windows == (4096,) * 32
    assert read(tmp_path, new).windows == (0,) * 32


def test_nemo(tmp_path: Path) -> None:
    config = llama(5120, 14336, 40, 32, 8, 131072, model_type="mistral", head_dim=128)
    assert read(tmp_path, config | {"sliding_window": None}).parameters == 12_247_782_400


def test_mistral_small_3_1_without_its_image_part(tmp_path: Path) -> None:
    text = llama(5120, 32768, 40, 32, 8, 131072, model_type="mistral", head_dim=128)
    outer = {
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
        "image_token_index": 10, "multimodal_projector_bias": False, "spatial_merge_size": 2,
        "projector_hidden_act": "gelu", "vision_feature_layer": -1, "text_config": text,
        "vision_config": {"hidden_size": 1024, "model_type": "pixtral", "head_dim": 64},
    }  # fmt: skip
    shapes = {f"language_model.{name}": shape for name, shape in dense(text).items()}
    shapes |= {"vision_tower.ln_pre.weight": (1024,), "multi_modal_projector.norm.weight": (1024,)}
    spec = read(tmp_path, outer, shapes)
    assert spec.parameters == 23_572_403_200
    assert ["text only" in note for note in spec.notes] == [True]


def test_ministral_3(tmp_path: Path) -> None:
    rope = {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
        "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
        "rope_theta": 1000000.0, "rope_type": "yarn", "type": "yarn",
    }  # fmt: skip
    text = llama(4096, 14336, 34, 32, 8, 131072, model_type="ministral3", head_dim=128)
    text |= {"max_position_embeddings": 262144, "sliding_window": None, "rope_parameters": rope}
    outer = {"model_type": "mistral3", "text_config": text, "vision_config": {}}
    shapes = {f"language_model.{name}": shape for name, shape in dense(text).items()}
    spec = read(tmp_path, outer, shapes)
    assert (spec.temperature_beta, spec.temperature_length) == (0.1, 16384)
    assert spec.ropes[0].scale == 1.0  # mscale and mscale_all_dim undo each other
    assert spec.notes == ()


def test_qwen(tmp_path: Path) -> None:
    window = {"sliding_window": 32768, "max_window_layers": 21, "use_sliding_window": False}
    config = llama(896, 4864, 24, 14, 2, 151936, model_type="qwen2", **window)
    config |= {"tie_word_embeddings": True, "use_mrope": False, "rope_theta": 1000000.0}
    spec = read(tmp_path, config, dense(config, qkv_bias=True))
    assert spec.parameters == 494_032_768
    assert set(spec.windows) == {0}
    assert set(read(tmp_path, config | {"use_sliding_window": True},
                    dense(config, qkv_bias=True)).windows) == {0, 32768}  # fmt: skip
    config = llama(2560, 9728, 36, 32, 8, 151936, model_type="qwen3", head_dim=128, **window)
    config |= {"tie_word_embeddings": True, "attention_bias": False, "sliding_window": None}
    spec = read(tmp_path, config, dense(config, head_norms=True))
    assert spec.parameters == 4_022_468_096


def gemma(config: dict[str, Any], *, head_norms: bool) -> Shapes:
    shapes = dense(config, head_norms=head_norms)
    for layer in range(config["num_hidden_layers"]):
        for norm in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (config["hidden_size"],)
    return shapes


def test_gemma_2(tmp_path: Path) -> None:
    config = llama(2304, 9216, 26, 8, 4, 256000, model_type="gemma2", head_dim=256)
    config |= {
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096,
        "query_pre_attn_scalar": 256, "cache_implementation": "hybrid", "rope_theta": 10000.0,
        "tie_word_embeddings": True, "attention_bias": False, "max_position_embeddings": 8192,
    }  # fmt: skip
    spec = read(tmp_path, config, gemma(config, head_norms=False))
    assert spec.parameters == 2_614_341_888
    assert spec.windows[:4] == (4096, 0, 4096, 0)
    assert spec.attention_scale == 1 / 16


def test_gemma_3_whose_config_leaves_most_out(tmp_path: Path) -> None:
    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }  # fmt: skip
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
        "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
        "mm_tokens_per_image": 256, "model_type": "gemma3", "text_config": text,
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }  # fmt: skip
    full = text | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
    full |= {"vocab_size": 262208, "tie_word_embeddings": True}
    shapes = {
        f"language_model.{name}": shape for name, shape in gemma(full, head_norms=True).items()
    }
    spec = read(tmp_path, outer, shapes | {"vision_tower.x.weight": (2, 2)})
    assert spec.parameters == 3_880_263_168
    assert (spec.windows.count(0), spec.windows[5], spec.windows[6]) == (5, 0, 1024)
    whole, local = spec.ropes
    assert whole.inverse_frequencies[0] == 1 / 8
    assert local.inverse_frequencies[0] == 1.0
    assert spec.layer_ropes[4:7] == (1, 0, 1)


def test_phi_4_mini(tmp_path: Path) -> None:
    factors = [1.0 + i / 10 for i in range(48)]
    config = llama(3072, 8192, 32, 24, 8, 200064, model_type="phi3", tie_word_embeddings=True)
    config |= {
        "embd_pdrop": 0.0, "resid_pdrop": 0.0, "full_attn_mod": 1, "interpolate_factor": 1,
        "lm_head_bias": False, "mlp_bias": False, "attention_bias": False, "auto_map": {},
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
        "sliding_window": 262144, "_name_or_path": "Phi-4-mini-instruct",
        "rope_scaling": {"type": "longrope", "short_factor": factors, "long_factor": factors[::-1]},
    }  # fmt: skip
    shapes: Shapes = {}
    for name, shape in dense(config).items():
        if "q_proj" in name:
            shapes[name.replace("q_proj", "qkv_proj")] = (3072 + 2 * 1024, 3072)
        elif "gate_proj" in name:
            shapes[name.replace("gate_proj", "gate_up_proj")] = (2 * 8192, 3072)
        elif not any(part in name for part in ("k_proj", "v_proj", ".up_proj")):
            shapes[name] = shape
    spec = read(tmp_path, config, shapes)
    assert spec.parameters == 3_836_021_760
    assert spec.ropes[0].dims == 96
    assert spec.ropes[0].scale == pytest.approx(1.1902, abs=1e-4)
    short, long = spec.serving(4096).ropes[0], spec.serving(4097).ropes[0]
    assert short.inverse_frequencies[0] == 1.0
    assert long.inverse_frequencies[0] == pytest.approx(1 / 5.7)


def test_smollm3(tmp_path: Path) -> None:
    config = llama(2048, 11008, 36, 16, 4, 128256, model_type="smollm3", tie_word_embeddings=True)
    config |= {
        "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "mlp_bias": False,
        "layer_types": ["full_attention"] * 36, "max_window_layers": 28, "sliding_window": None,
        "use_sliding_window": False, "pretraining_tp": 2, "attention_bias": False,
        "rope_scaling": None, "rope_theta": 5000000.0, "max_position_embeddings": 65536,
    }  # fmt: skip
    spec = read(tmp_path, config)
    assert spec.parameters == 3_075_098_624
    assert spec.layer_ropes == (0, 0, 0, -1) * 9


def test_gpt_oss(tmp_path: Path) -> None:
    experts = 32
    config = llama(2880, 2880, 24, 64, 8, 201088, model_type="gpt_oss", head_dim=64)
    config |= {
        "attention_bias": True, "experts_per_token": 4, "initial_context_length": 4096,
        "layer_types": ["sliding_attention", "full_attention"] * 12, "num_experts_per_tok": 4,
        "num_local_experts": experts, "output_router_logits": False, "router_aux_loss_coef": 0.9,
        "quantization_config": {"modules_to_not_convert": [], "quant_method": "mxfp4"},
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
            "original_max_position_embeddings": 4096, "truncate": False,
        },
        "rope_theta": 150000, "sliding_window": 128, "swiglu_limit": 7.0,
    }  # fmt: skip
    shapes = {n: s for n, s in dense(config, qkv_bias=True).items() if ".mlp." not in n}
    for layer in range(24):
        prefix = f"model.layers.{layer}."
        mlp = f"{prefix}mlp.experts."
        shapes |= {
            f"{prefix}self_attn.o_proj.bias": (2880,), f"{prefix}self_attn.sinks": (64,),
            f"{prefix}mlp.router.weight": (experts, 2880), f"{prefix}mlp.router.bias": (experts,),
            f"{mlp}gate_up_proj": (experts, 2880, 5760), f"{mlp}gate_up_proj_bias": (experts, 5760),
            f"{mlp}down_proj": (experts, 2880, 2880), f"{mlp}down_proj_bias": (experts, 2880),
        }  # fmt: skip
    spec = read(tmp_path, config, shapes)
    assert spec.parameters == 20_914_757_184
    assert spec.windows[:2] == (128, 0)
    assert spec.ropes[0].scale == pytest.approx(1.3466, abs=1e-4)


@pytest.mark.parametrize(
    "quantised",
    [
        {"quantization_config": {"bits": 4, "group_size": 64}, "quantization": {"bits": 4}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"quantization_config": {"quant_method": "compressed-tensors"}},
        {"quantization": {"bits": 4, "group_size": 64}},
    ],
)
def test_other_quantised_folders_are_refused(tmp_path: Path, quantised: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"is quantised .* BF16, or as a GGUF file"):
        read(tmp_path, llama(576, 1536, 2, 9, 3, 100) | quantised)

"""Damaged, mislabelled and unknown models: one sentence that names the file and what to do."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import golden_files as golden
from maestrale.engines.cpu.model_files import open_model, spec_of
from maestrale.errors import ModelError
from rewritten_gguf import Change, Tensors, rewritten
from tiny_models import write_safetensors


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.gguf_file("nemo", tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "model.gguf"


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        spec_of(path)
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert "\n" not in said


def test_what_is_rewritten_unchanged_is_read(llama: Path, scratch: Path) -> None:
    rewritten(llama, scratch, lambda values, tensors: None)
    assert spec_of(scratch).layers == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v, t: t.pop("blk.1.attn_k.weight"), ("lacks", "blk.1.attn_k.weight")),
        (lambda v, t: t.pop("output_norm.weight"), ("lacks", "output_norm.weight")),
        (lambda v, t: t.pop("token_embd.weight"), ("lacks", "token_embd.weight")),
        (
            lambda v, t: t.update({"blk.0.ffn_up.weight": np.zeros((96, 32), np.float16)}),
            ("blk.0.ffn_up.weight", "[96, 32]", "[96, 64]"),
        ),
        (
            lambda v, t: t.update({"blk.0.ffn_up.weight": np.zeros((96, 64), np.int32)}),
            ("blk.0.ffn_up.weight", "I32", "quantisation"),
        ),
        (
            lambda v, t: t.update({"blk.0.attn_q.scale": np.zeros(1, np.float32)}),
            ("blk.0.attn_q.scale", "isn't known"),
        ),
        (
            lambda v, t: t.update({"blk.0.attn_q_norm.weight": np.zeros(32, np.float32)}),
            ("blk.0.attn_q_norm.weight", "isn't known"),
        ),
        (lambda v, t: v.update({"llama.attention.head_count": 0}), ("head_count", "can't be")),
        (lambda v, t: v.update({"llama.attention.head_count": "4"}), ("head_count", "no whole")),
        (lambda v, t: v.update({"llama.attention.head_count_kv": 3}), ("heads",)),
        (
            lambda v, t: v.update({"llama.attention.head_count_kv": [2, 1]}),
            ("head_count_kv", "layer to layer"),
        ),
        (lambda v, t: v.update({"llama.block_count": 1}), ("blk.1.", "isn't known")),
        (lambda v, t: v.update({"llama.block_count": 4_000_000}), ("block_count", "can't be")),
        (lambda v, t: v.update({"llama.embedding_length": 128}), ("token_embd.weight", "shape")),
        (lambda v, t: v.pop("llama.context_length"), ("lacks", "context_length")),
        (
            lambda v, t: v.update({"llama.rope.scaling.type": "dynamic"}),
            ("rope.scaling.type", "dynamic"),
        ),
        (
            lambda v, t: v.update({"llama.rope.freq_base": float("nan")}),
            ("rope.freq_base", "can't be"),
        ),
        (
            lambda v, t: (
                v.update({"llama.rope.scaling.type": "yarn"}),
                t.update({"rope_freqs.weight": np.ones(16, np.float32)}),
            ),
            ("rope.scaling.type", "rule out"),
        ),
        (
            lambda v, t: v.update({"llama.rope.scaling.type": "longrope"}),
            ("rope.scaling.type", "rope_factors_long"),
        ),
        (
            lambda v, t: v.update({"llama.rope.scaling.yarn_attn_factor": 2.0}),
            ("yarn_attn_factor",),
        ),
        (lambda v, t: v.update({"llama.rope.dimension_count": 8}), ("rope.dimension_count",)),
        (lambda v, t: v.update({"llama.logit_scale": 2.0}), ("llama.logit_scale", "isn't known")),
        (lambda v, t: v.update({"llama.ssm.inner_size": 2}), ("llama.ssm.inner_size",)),
        (lambda v, t: v.update({"llama.pooling_type": 2}), ("pooling_type",)),
        (lambda v, t: v.update({"llama.attention.causal": False}), ("attention.causal",)),
        (lambda v, t: v.update({"general.type": "adapter"}), ("adapter", "LoRA")),
        (lambda v, t: v.update({"general.type": "mmproj"}), ("image or audio",)),
        (lambda v, t: v.update({"adapter.type": "lora"}), ("adapter.type",)),
        (lambda v, t: v.update({"general.architecture": "mamba2"}), ("recurrent", "llama")),
        (lambda v, t: v.update({"general.architecture": "deepseek2"}), ("MLA", "Served are")),
        (lambda v, t: v.update({"general.architecture": "bert"}), ("encoder",)),
        (lambda v, t: v.update({"general.architecture": "next9"}), ("next9", "isn't known")),
        (
            lambda v, t: t.update({"rope_freqs.weight": np.ones(3, np.float32)}),
            ("rope_freqs.weight", "16"),
        ),
        (
            lambda v, t: t.update({"rope_freqs.weight": np.full(16, np.inf, np.float32)}),
            ("rope_freqs.weight", "finite"),
        ),
        (
            lambda v, t: t.update({"rope_freqs.weight": np.zeros(16, np.float32)}),
            ("rope", "can't be"),
        ),
    ],
)
def test_a_gguf_file_that_cannot_be_right_is_refused(
    llama: Path, scratch: Path, change: Change, words: tuple[str, ...]
) -> None:
    refused(rewritten(llama, scratch, change), *words)


def test_a_scale_of_the_rotary_embedding_is_honoured(llama: Path, scratch: Path) -> None:
    factor = {"llama.rope.scaling.attn_factor": 1.25}
    rewritten(llama, scratch, lambda values, tensors: values.update(factor))
    assert spec_of(scratch).ropes[0].scale == 1.25


def test_a_gguf_file_cut_anywhere_is_refused(llama: Path, scratch: Path) -> None:
    content = llama.read_bytes()
    for length in (*range(0, 400, 7), *range(400, len(content) - 64, 4999)):
        scratch.write_bytes(content[:length])
        refused(scratch, str(scratch))


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_heads_give_an_answer(llama: Path, scratch: Path, data: st.DataObject) -> None:
    content = bytearray(llama.read_bytes())
    head = content.index(b"blk.1.ffn_up") + 40
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(4, head))] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content)
    with contextlib.suppress(ModelError):  # no other exception may come
        spec_of(scratch)


def test_two_tensors_of_one_name_are_refused(llama: Path, scratch: Path) -> None:
    content = llama.read_bytes()
    assert content.count(b"blk.0.ffn_up.weight") == 1
    scratch.write_bytes(content.replace(b"blk.0.ffn_up.weight", b"blk.1.ffn_up.weight"))
    refused(scratch, "two tensors", "blk.1.ffn_up.weight")


def test_an_offset_past_the_end_is_refused(llama: Path, scratch: Path) -> None:
    content = bytearray(llama.read_bytes())
    name = content.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight")
    struct.pack_into("<Q", content, name + 4 + 2 * 8 + 4, 1 << 40)
    scratch.write_bytes(content)
    refused(scratch, "truncated", "blk.0.ffn_up.weight")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.gguf", b"version https://git-lfs.github.com/spec/v1\n", ("Git LFS pointer",)),
        ("model.gguf", b"<html>", ("not a GGUF file",)),
        ("model.bin", b"\x80\x02}q", ("pickle",)),
        ("model.pt", b"PK", ("pickle",)),
        ("model.safetensors", b"", ("one file of a model",)),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, name: str, content: bytes, words: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, *words)


@pytest.fixture
def parts(llama: Path, tmp_path: Path) -> list[Path]:
    """The model in three parts, the first of which has no tensors."""

    def part(number: int, names: slice) -> Path:
        def change(values: dict[str, Any], tensors: Tensors) -> None:
            kept = list(tensors)[names]
            total = len(tensors)
            for name in set(tensors) - set(kept):
                del tensors[name]
            if number:
                for key in [key for key in values if key != "general.architecture"]:
                    del values[key]
            values |= {"split.no": number, "split.count": 3, "split.tensors.count": total}

        return rewritten(llama, tmp_path / f"nemo-{number + 1:05}-of-00003.gguf", change)

    return [part(0, slice(0, 0)), part(1, slice(0, 7)), part(2, slice(7, None))]


def test_a_model_in_parts_is_read_from_any(parts: list[Path], llama: Path) -> None:
    whole = spec_of(llama)
    assert [spec_of(part) for part in parts] == [whole] * 3
    described = open_model(parts[1])
    assert {tensor.file for tensor in described.source.tensors.values()} == set(parts[1:])


def test_a_part_alone_is_refused_by_the_names_of_the_others(parts: list[Path]) -> None:
    parts[2].unlink()
    refused(parts[1], "nemo-00003-of-00003.gguf", "Put them beside it")


def test_a_part_under_another_name_is_refused(parts: list[Path], tmp_path: Path) -> None:
    renamed = parts[0].rename(tmp_path / "renamed.gguf")
    refused(renamed, "one of 3 parts", "NAME-00001-of-00003.gguf")


def test_parts_in_the_wrong_places_are_refused(parts: list[Path], tmp_path: Path) -> None:
    parts[1].rename(tmp_path / "other")
    parts[2].rename(parts[1])
    (tmp_path / "other").rename(parts[2])
    refused(parts[0], "part 2 of 3", "part 1 of 3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return golden.hf_folder("nemo", tmp_path, shards=3)


def change_config(folder: Path, **more: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | more
    path.write_text(json.dumps(config))


def test_a_folder_in_shards_is_read(folder: Path) -> None:
    assert spec_of(folder).parameters == spec_of(golden.hf_folder("nemo", folder)).parameters


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "model-00002-of-00003.safetensors", "cut off")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"hidden_act": "relu2"}, ("hidden_act", "relu2", "silu")),
        (
            {"rope_scaling": {"rope_type": "proportional", "factor": 2.0}},
            ("rope_type", "proportional"),
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "odd": 1}}, ("odd", "isn't known")),
        ({"rope_scaling": 3}, ("rope_scaling", "no object")),
        ({"layer_types": ["full_attention", "linear_attention"]}, ("linear_attention",)),
        ({"layer_types": ["full_attention"]}, ("layer_types", "array of 2")),
        ({"num_hidden_layers": 3}, ("model.layers.2.", "lacks")),
        ({"num_hidden_layers": 1}, ("model.layers.1.", "isn't known")),
        ({"num_hidden_layers": None}, ("lacks", "num_hidden_layers")),
        ({"head_dim": 16}, ("q_proj.weight", "shape")),
        ({"mamba_d_state": 16}, ("mamba_d_state", "isn't known")),
        ({"rope_theta": "10000"}, ("rope_theta", "no number")),
        ({"rms_norm_eps": 1e400}, ("rms_norm_eps", "can't be")),
        ({"quantization_config": {"quant_method": "gptq"}}, ("gptq", "GGUF")),
        ({"quantization_config": {"quant_method": "fp8"}}, ("fp8", "BF16")),
        ({"model_type": "mamba"}, ("mamba", "recurrent")),
        ({"model_type": "deepseek_v3"}, ("deepseek_v3", "MLA")),
        ({"model_type": 3}, ("model_type",)),
        ({"text_config": {"model_type": "qwen3_next"}}, ("qwen3_next", "recurrent")),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(
    folder: Path, more: dict[str, Any], words: tuple[str, ...]
) -> None:
    change_config(folder, **more)
    refused(folder, *words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"[1]", ("config.json", "not a JSON object")),
        ("config.json", b"{", ("config.json", "not valid JSON")),
        ("adapter_config.json", b"{}", ("adapter", "Merge it")),
        ("model.safetensors.index.json", b"{}", ("index",)),
        ("model-00002-of-00003.safetensors", b"version https://git-lfs", ("Git LFS pointer",)),
        ("model-00002-of-00003.safetensors", b"\xff" * 9, ("header is cut off",)),
        ("model-00002-of-00003.safetensors", struct.pack("<Q", 2) + b"[]", ("no JSON object",)),
    ],
)
def test_a_folder_with_a_damaged_file_is_refused(
    folder: Path, name: str, content: bytes, words: tuple[str, ...]
) -> None:
    (folder / name).write_bytes(content)
    refused(folder, *words)


def test_a_folder_of_pickles_is_refused(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    refused(folder, "no weights")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    refused(folder, "pickles", "pytorch_model.bin")


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    twin = folder / "twin.safetensors"
    twin.write_bytes((folder / "model-00001-of-00003.safetensors").read_bytes())
    table["weight_map"]["more"] = twin.name
    index.write_text(json.dumps(table))
    refused(folder, "twin.safetensors", "is in")


def test_a_model_with_an_image_part_says_that_it_is_left_out(tmp_path: Path) -> None:
    folder = golden.hf_folder("nemo", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    outer = {"model_type": "mistral3", "vision_config": {}, "text_config": config}
    (folder / "config.json").write_text(json.dumps(outer | {"spatial_merge_size": 2}))
    weights = golden.model("nemo").weights()
    renamed = {f"language_model.{name}": values for name, values in weights.items()} | {
        "vision_tower.patch_conv.weight": np.zeros((4, 4), np.float32)
    }
    write_safetensors(folder / "model.safetensors", renamed, "F32")
    spec = spec_of(folder)
    assert spec.parameters == spec_of(golden.gguf_file("nemo", tmp_path)).parameters
    assert len(spec.notes) == 1
    assert "text only" in spec.notes[0]

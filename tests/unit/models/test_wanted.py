"""Which files an engine needs, by their names."""

from __future__ import annotations

import pytest

from maestrale.errors import ModelError
from maestrale.models.hub_names import hub_name
from maestrale.models.wanted import wanted_files

MISTRAL = (
    ".gitattributes", "README.md", "config.json", "consolidated.safetensors",
    "generation_config.json", "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
    "model.safetensors.index.json", "params.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer.model", "tokenizer.model.v3", "tokenizer_config.json",
)  # fmt: skip
OPENVINO = (
    ".gitattributes", "README.md", "config.json", "generation_config.json",
    "openvino_detokenizer.bin", "openvino_detokenizer.xml", "openvino_model.bin",
    "openvino_model.xml", "openvino_tokenizer.bin", "openvino_tokenizer.xml",
    "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
)  # fmt: skip
GGUFS = (
    "README.md", "m-Q2_K.gguf", "m-Q4_0.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-f16.gguf",
    "m-bf16/m-bf16-00001-of-00002.gguf",
)  # fmt: skip


def test_vllm_gets_the_weights_once() -> None:
    wanted = wanted_files("m", MISTRAL, "vllm")
    assert wanted.kind == "safetensors"
    assert wanted.weights == "model-00001-of-00003.safetensors"
    left_out = {".gitattributes", "README.md", "consolidated.safetensors"}
    assert set(wanted.names) == set(MISTRAL) - left_out


def test_mistrals_own_format_is_taken_where_there_is_no_other() -> None:
    names = ("params.json", "tekken.json", "consolidated.safetensors")
    assert wanted_files("m", names, "vllm").names == names


def test_the_cpu_gets_the_openvino_model() -> None:
    wanted = wanted_files("m", OPENVINO, "openvino")
    assert (wanted.kind, wanted.weights) == ("openvino", "openvino_model.bin")
    assert not any("detokenizer" in name or "README" in name for name in wanted.names)
    assert {"openvino_model.xml", "tokenizer.json", "config.json"} <= set(wanted.names)


@pytest.mark.parametrize(
    ("variant", "file"),
    [
        ("", "m-Q4_K_M.gguf"),
        ("q8_0", "m-Q8_0.gguf"),
        ("F16", "m-f16.gguf"),
        ("m-Q2_K.gguf", "m-Q2_K.gguf"),
    ],
)
def test_one_gguf_is_taken(variant: str, file: str) -> None:
    assert wanted_files("m", GGUFS, "openvino", variant).names == (file,)


@pytest.mark.parametrize(
    ("names", "engine", "variant", "said"),
    [
        (MISTRAL, "openvino", "", r"safetensors\. The CPU engine.*OpenVINO/m-int4-ov"),
        (OPENVINO, "vllm", "", "an OpenVINO model; vLLM needs safetensors"),
        (GGUFS, "vllm", "", "GGUF files; vLLM needs safetensors"),
        (GGUFS, "openvino", "Q3_K", r"no GGUF file 'Q3_K'. It has: Q2_K, Q4_0"),
        (("a-IQ1_S.gguf", "b-IQ2_M.gguf"), "openvino", "", "none of a kind known"),
        (("config.json", "pytorch_model.bin"), "vllm", "", "pickles"),
        (("README.md",), "openvino", "", "no weights"),
    ],
)
def test_what_is_not_there_is_said(
    names: tuple[str, ...], engine: str, variant: str, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        wanted_files("org/m", names, engine, variant)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", ("org/name", "")),
        ("Org/Na-me.v0_1:Q4_K_M", ("Org/Na-me.v0_1", "Q4_K_M")),
        ("name", None),
        ("a/b/c", None),
        ("../name", None),
        ("org/..", None),
        ("/org/name", None),
        ("org/name\n", None),
    ],
)
def test_names_on_the_hub(text: str, found: tuple[str, str] | None) -> None:
    assert hub_name(text) == found

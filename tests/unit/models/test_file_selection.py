"""Which files an engine needs, by their names."""

from __future__ import annotations

import pytest

from maestrale.errors import ModelError
from maestrale.models.file_selection import select_files
from maestrale.models.hub_names import hub_name
from maestrale.models.tensor_info import EXACT_TYPES

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
    selection = select_files("m", MISTRAL, "vllm")
    assert selection.kind == "safetensors"
    assert selection.weights == "model-00001-of-00003.safetensors"
    left_out = {".gitattributes", "README.md", "consolidated.safetensors"}
    assert set(selection.names) == set(MISTRAL) - left_out


def test_mistrals_own_format_is_taken_where_there_is_no_other() -> None:
    names = ("params.json", "tekken.json", "consolidated.safetensors")
    assert select_files("m", names, "vllm").names == names


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
    assert select_files("m", GGUFS, "cpu", variant).names == (file,)


@pytest.mark.parametrize(
    ("names", "engine", "variant", "said"),
    [
        (OPENVINO, "vllm", "", "an OpenVINO model; vLLM needs safetensors"),
        (GGUFS, "vllm", "", "GGUF files; vLLM needs safetensors"),
        (GGUFS, "cpu", "Q3_K", r"no GGUF file 'Q3_K'. It has: BF16, F16, Q2_K"),
        (("config.json", "pytorch_model.bin"), "vllm", "", "pickles"),
        (("README.md",), "cpu", "", "no weights"),
    ],
)
def test_what_is_not_there_is_said(
    names: tuple[str, ...], engine: str, variant: str, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        select_files("org/m", names, engine, variant)


MANY = (
    "README.md", "m-IQ4_XS.gguf", "m-Q8_0.gguf", "m-q4_k_m-00002-of-00002.gguf",
    "m-q4_k_m-00001-of-00002.gguf", "mmproj-m-f16.gguf", "UD/m-UD-Q6_K_XL-00001-of-00002.gguf",
    "UD/m-UD-Q6_K_XL-00002-of-00002.gguf", "m-imatrix.gguf", "m-bf16.gguf",
)  # fmt: skip
Q4, UD = ("m-q4_k_m-00001-of-00002.gguf", "m-q4_k_m-00002-of-00002.gguf"), MANY[6:8]


@pytest.mark.parametrize(
    ("variant", "files"),
    [
        ("", Q4),
        ("Q4_K_M", Q4),
        (Q4[1], Q4),
        ("m-q4_k_m-00001-of-00002", Q4),
        ("q8_0", ("m-Q8_0.gguf",)),
        ("UD-Q6_K_XL", UD),
        ("Q6_K_XL", UD),
        ("BF16", ("m-bf16.gguf",)),
    ],
)
def test_the_cpu_engine_gets_all_parts_of_one_gguf(variant: str, files: tuple[str, ...]) -> None:
    selection = select_files("m", MANY, "cpu", variant)
    assert (selection.kind, selection.names, selection.weights) == ("gguf", files, files[0])
    assert selection.others == (() if variant else ("BF16", "IQ4_XS", "Q6_K_XL", "Q8_0"))


@pytest.mark.parametrize(
    ("names", "kind", "weights"),
    [
        (MISTRAL, "safetensors", "model-00001-of-00003.safetensors"),
        ((*MISTRAL, "m-Q5_K_S.gguf"), "gguf", "m-Q5_K_S.gguf"),
        ((*MISTRAL, "m.gguf"), "safetensors", "model-00001-of-00003.safetensors"),
        (("params.json", "tekken.json", "consolidated.safetensors"), "safetensors",
         "consolidated.safetensors"),
        (("odd.gguf", "README.md"), "gguf", "odd.gguf"),
        (("m-mxfp4.gguf", "m-F16.gguf"), "gguf", "m-mxfp4.gguf"),
        (("a-fp16.gguf", "mmproj.gguf"), "gguf", "a-fp16.gguf"),
    ],
)  # fmt: skip
def test_the_cpu_engine_reads_ggufs_and_safetensors(
    names: tuple[str, ...], kind: str, weights: str
) -> None:
    selection = select_files("m", names, "cpu")
    assert (selection.kind, selection.weights) == (kind, weights)


def test_chat_templates_come_along() -> None:
    names = (*MISTRAL, "additional_chat_templates/tool_use.jinja", "onnx/config.json")
    selection = select_files("m", names, "cpu").names
    assert "additional_chat_templates/tool_use.jinja" in selection
    assert "onnx/config.json" not in selection


@pytest.mark.parametrize(
    ("repo", "names", "variant", "said"),
    [
        ("OpenVINO/Qwen3-8B-int4-ov", OPENVINO, "", "GGUF files and safetensors.*Qwen/Qwen3-8B"),
        ("o/odd-fp16-ov", OPENVINO, "", "bartowski/odd-GGUF"),
        ("o/m", MANY, "Q3_K", "no GGUF file 'Q3_K'. It has: BF16, IQ4_XS, Q4_K_M"),
        ("o/m", MISTRAL, "Q4_K_M", "no GGUF file 'Q4_K_M'. It has: none"),
        ("o/m", ("a.gguf", "b.gguf"), "", "don't tell how they differ.*o/m:FILE.gguf.*a.gguf"),
        ("o/m", ("config.json", "pytorch_model.bin"), "", "pickles"),
        ("o/m", ("adapter_config.json", "adapter_model.safetensors"), "", "adapter .LoRA.*Merge"),
        ("o/m", ("README.md",), "", "no weights"),
    ],
)
def test_what_the_cpu_engine_cannot_have_is_said(
    repo: str, names: tuple[str, ...], variant: str, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        select_files(repo, names, "cpu", variant)


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


@pytest.mark.parametrize("kind", sorted(EXACT_TYPES))
def test_every_quantised_type_that_is_served_is_found_in_a_name(kind: str) -> None:
    # K types have sizes beside (Q4_K_M), and IQ1 to IQ3 are named so alone.
    name = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}.get(kind, kind)
    selected = select_files(
        "m", (f"m-{name}.gguf", "m-F16.gguf", "model.safetensors", "config.json"), "cpu"
    )
    assert (selected.weights, selected.others) == (f"m-{name}.gguf", ("F16",))

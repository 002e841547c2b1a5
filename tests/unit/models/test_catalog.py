"""Names of known models."""

from __future__ import annotations

import pytest

from maestrale.config.settings import BUNDLED_MODEL
from maestrale.models.catalog import CATALOG, closest_names, find_model, names_of, packaged_weights
from maestrale.models.hub_names import hub_name
from maestrale.models.mistral_vocabulary import TOKENIZER_FILES, shipped_file


def test_names_are_unique() -> None:
    names = [name for model in CATALOG for name in names_of(model)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name", [BUNDLED_MODEL, "HuggingFaceTB/SmolLM2-135M-Instruct", "SMOLLM2-135M-INSTRUCT"]
)
def test_the_bundled_model_is_found_with_its_weights(name: str) -> None:
    known = find_model(name)
    assert known is not None
    weights = packaged_weights(known)
    assert weights is not None
    assert weights.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.1", "v1"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "v1"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "v3"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "v3-tekken"),
        ("mistralai/Ministral-8B-Instruct-2410", "v3-tekken"),
    ],
)
def test_mistral_models_have_their_tokenizer(name: str, version: str) -> None:
    known = find_model(name)
    assert known is not None
    assert known.mistral_version == version


def test_each_tokenizer_in_the_catalogue_is_shipped() -> None:
    versions = {model.mistral_version for model in CATALOG if model.mistral_version}
    assert versions <= TOKENIZER_FILES.keys()
    assert all(shipped_file(version).is_file() for version in versions)


# As the models' pages on the hub give them (the count of safetensors' weights).
PARAMETERS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "mistralai/Mistral-7B-Instruct-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "mistralai/Mistral-Small-Instruct-2409": 22_247_282_688,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "mistralai/Mistral-Large-Instruct-2407": 122_610_069_504,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Ministral-8B-Instruct-2410": 8_019_808_256,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-3-1b-it": 999_885_952,
    "microsoft/Phi-3.5-mini-instruct": 3_821_079_552,
    "microsoft/phi-4": 14_659_507_200,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_a_shape_gives_the_published_count_of_parameters(name: str, parameters: int) -> None:
    known = find_model(name)
    assert known is not None
    assert known.architecture.parameters == parameters


def test_each_model_has_a_gguf_for_the_cpu() -> None:
    for model in CATALOG:
        if model.package_file is None:
            assert model.cpu_source is not None, model.name
            repo, variant = hub_name(model.cpu_source) or ("", "")
            assert (repo[-5:], variant) == ("-GGUF", "Q4_K_M"), model.name


def test_a_name_with_a_slip_finds_its_neighbours() -> None:
    assert closest_names("mistralai/Mistral-7B-Instruct-v0.4")[0].startswith("mistralai/Mistral-7B")
    assert closest_names("nobody/nothing") == []
    assert closest_names("qwen3")[0].startswith("Qwen/Qwen3-")  # a part of a name
    assert closest_names("x") == []


def test_other_names_are_unknown() -> None:
    assert find_model("mistralai/Mistral-7B-Instruct-v0.9") is None

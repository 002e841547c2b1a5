"""Names of known models."""

from __future__ import annotations

import pytest

from maestrale.config import BUNDLED_MODEL
from maestrale.models.catalog import CATALOG, find_model, packaged_weights
from maestrale.models.mistral_vocabulary import TOKENIZER_FILES, shipped_file


def test_names_are_unique() -> None:
    names = [name.casefold() for model in CATALOG for name in (model.name, *model.aliases)]
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


def test_other_names_are_unknown() -> None:
    assert find_model("mistralai/Mistral-7B-Instruct-v0.9") is None

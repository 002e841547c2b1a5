"""`prepare`: every kind of model name, and every way it can be wrong."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from maestrale.config.hub import HubSettings
from maestrale.errors import ModelError
from maestrale.models.prepared import METADATA_FILE, is_intact, load_prepared
from maestrale.models.resolve import prepare
from maestrale.models.vocabulary import load_vocabulary
from tiny_mistral import write_tiny_mistral

MISTRAL_GGUF = "TheBloke/Mistral-7B-Instruct-v0.2-GGUF"


def quiet(phase: str, fraction: float | None) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_mistral(tmp_path_factory.mktemp("tiny") / "tiny-mistral.gguf")


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", MISTRAL_GGUF),
        ("mistral-7b-instruct-v0.2", MISTRAL_GGUF),
        ("somebody/something", "somebody/something"),
    ],
)
def test_a_model_that_is_not_here_is_sought_on_the_hub(
    tmp_path: Path, model: str, source: str
) -> None:
    hub = HubSettings(cache=tmp_path / "hub", offline=True)
    with pytest.raises(ModelError, match=f"{source} is not .*HF_HUB_OFFLINE"):
        prepare(model, tmp_path, quiet, hub=hub)


def test_the_cpu_engine_seeks_a_gguf(tmp_path: Path) -> None:
    hub = HubSettings(cache=tmp_path / "hub", offline=True)
    with pytest.raises(ModelError, match=r"TheBloke/Mistral-7B-Instruct-v0\.2-GGUF is not"):
        prepare("mistral-7b-instruct-v0.2", tmp_path, quiet, hub=hub, engine="cpu")


def test_an_unknown_name_says_what_works(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model 'mistral-7b-instruct'.*mean.*\.gguf"):
        prepare("mistral-7b-instruct", tmp_path, quiet)


def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks weights.*tokenizer\.json"):
        prepare(str(tmp_path), tmp_path / "cache", quiet)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.PKL"])
def test_a_pickle_is_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(ModelError, match="pickle"):
        prepare(str(tmp_path / name), tmp_path / "cache", quiet)


@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.999])
def test_a_truncated_model_leaves_nothing_behind(tiny: Path, tmp_path: Path, kept: float) -> None:
    whole = tiny.read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ModelError, match="truncated"):
        prepare(str(broken), tmp_path / "cache", quiet)
    assert list(tmp_path.rglob(METADATA_FILE)) == []


def test_a_cache_that_cannot_be_written_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    with pytest.raises(ModelError, match="cache"):
        prepare(str(tiny), tmp_path / "cache", quiet)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a file nor a folder"):
        prepare("/dev/zero", tmp_path, quiet)


@pytest.mark.model
def test_a_tiny_mistral_is_prepared_with_its_own_tokenizer(tiny: Path, tmp_path: Path) -> None:
    phases: list[str] = []
    folder = prepare(str(tiny), tmp_path, lambda phase, fraction: phases.append(phase))
    prepared = load_prepared(folder)
    assert prepared.name == "tiny-mistral"
    assert (prepared.tokenizer_kind, prepared.mistral_version) == ("mistral", "v1")
    assert (prepared.vocab_size, prepared.context_length) == (32000, 2048)
    assert prepared.eos_token_ids == (2,)
    assert load_vocabulary(folder).control_ids == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert prepared.source == str(tiny)
    phases.clear()
    assert prepare(str(tiny), tmp_path, lambda phase, fraction: phases.append(phase)) == folder
    assert phases == []
    assert prepare(str(folder), tmp_path, quiet) == folder


@pytest.mark.model
def test_the_bundled_model_is_prepared(prepared_model: Path) -> None:
    prepared = load_prepared(prepared_model)
    assert is_intact(prepared_model)
    assert prepared.name == "smollm2-135m-instruct"
    assert (prepared.vocab_size, prepared.context_length) == (49152, 8192)
    assert prepared.eos_token_ids[0] == 2
    vocabulary = load_vocabulary(prepared_model)
    assert len(vocabulary) == prepared.vocab_size
    assert vocabulary.control_ids["<|im_end|>"] == 2
    assert vocabulary.token_bytes[2] == b""
    assert b" the" in vocabulary.token_bytes

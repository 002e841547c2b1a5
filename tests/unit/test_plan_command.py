"""`maestrale plan`: its JSON, its table, its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maestrale.cli import main as cli
from stand_in_hub import Repo, stand_in_hub
from tiny_mistral import write_tiny_mistral

MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MAESTRALE_DEBUG", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.chdir(tmp_path)


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.run(["plan", *arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_known_model_needs_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    document = plan(capsys, MISTRAL, "--gpu", "A5000", "--max-num-batched-tokens", "32768")
    assert document["kv_bytes_per_token"] == 131_072
    assert document["kv_capacity_tokens"] == pytest.approx(27_680, rel=0.1)
    assert document["max_context_tokens"] == document["kv_capacity_tokens"]
    assert sum(term["bytes"] for term in document["terms"]) == document["kv_cache_bytes"]
    assert {"bf16", "fp8", "int8", "int4"} == set(document["dtypes"])
    assert set(document["users"]) == {"2048", "8192", "32768"}
    assert document["advice"]


def test_the_table_shows_every_term(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "mistral-7b-instruct-v0.2", "--gpu-memory", "24GiB"]) == 0
    out = capsys.readouterr().out
    for part in ("weights", "activations", "CUDA graphs", "128.0 KiB", "users at 32k", "int4"):
        assert part in out


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    document = plan(capsys, "smollm2-135m-instruct", "--cpu")
    assert (document["engine"], document["max_context_tokens"]) == ("cpu", 8192)


def test_files_and_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document = plan(capsys, str(write_tiny_mistral(tmp_path / "tiny.gguf")), "--cpu")
    assert document["kv_bytes_per_token"] == 280
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    document = plan(capsys, str(folder), "--gpu", "T4")
    assert document["kv_bytes_per_token"] == 4 * 2 * 2 * 32 * 2


def test_only_the_config_is_fetched(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = Repo({"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"x" * 5000})
    with stand_in_hub(org__model=repo) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert plan(capsys, "org/model", "--gpu", "T4")["model"] == "org/model"
        assert hub.sent == 0


@pytest.mark.parametrize("name", ["org/model", "org/model:Q8_0"])
def test_of_a_gguf_on_the_hub_its_head_is_fetched(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    content = write_tiny_mistral(tmp_path / "tiny.gguf").read_bytes()
    assert len(content) > 8 << 20
    repo = Repo({"m-Q4_K_M.gguf": content, "m-Q8_0.gguf": content, "README.md": b""})
    with stand_in_hub(org__model=repo) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        document = plan(capsys, name, "--cpu")
        assert (
            document["kv_bytes_per_token"] == 280
        )  # heads of 16 are filled up to 32, and have scales
        assert ("others: Q8_0" in document["source"]) == (name == "org/model")
        assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((MISTRAL, "--gpu", "A5000", "--max-model-len", "40000"), 1, "32768 does"),
        (
            (MISTRAL, "--gpu-memory", "20GiB", "--max-model-len", "32768"),
            1,
            "--max-model-len 32768 doesn't fit; ",
        ),
        (("meta-llama/Llama-3.3-70B-Instruct", "--gpu", "L4"), 1, "doesn't fit"),
        ((MISTRAL, "--gpu", "Voodoo2"), 2, "not in the table. It has P100"),
        ((MISTRAL, "--gpu-memory", "lots"), 2, "--gpu-memory: a size is needed"),
        (
            (MISTRAL, "--gpu-memory", "24"),
            2,
            "24 bytes; at least 64 MiB are needed. Was 24GiB meant?",
        ),
        ((MISTRAL, "--gpu", ""), 2, "'' is not in the table"),
        ((MISTRAL, "--gpu-memory", ""), 2, "--gpu-memory: a size is needed"),
        ((MISTRAL, "--cpu", "--dtype", "fp8"), 2, "for GPUs"),
        ((MISTRAL, "--cpu", "--max-num-seqs", "4"), 2, "--max-num-seqs is for a GPU"),
        ((MISTRAL, "--gpu", "T4", "--memory", "8GiB"), 2, "--memory is for a CPU"),
        (("no-such-model",), 1, "no model 'no-such-model'"),
        (("org/unreachable",), 1, "can't be reached"),
    ],
)
def test_refusals(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert cli.run(["plan", *arguments]) == code
    assert said in capsys.readouterr().err

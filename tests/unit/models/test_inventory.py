from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from maestrale.cli.models import command
from maestrale.errors import ModelError
from maestrale.models.inventory import find_stored, remove, stored_models
from maestrale.models.prepared import PreparedModel, save_prepared


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hub"


def fetched(cache: Path, repo: str, *names: str, cut: bool = False) -> Path:
    """A model of the hub's cache, each file of 1000 bytes."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    for number, name in enumerate(names):
        blob = folder / "blobs" / f"{number}{'.incomplete' if cut else ''}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(bytes(1000))
        if not cut:
            link = folder / "snapshots" / "c0ffee" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
            (folder / "refs").mkdir(exist_ok=True)
            (folder / "refs" / "main").write_text("c0ffee")
    return folder


def prepared(tmp_path: Path, source: Path) -> Path:
    folder = tmp_path / "maestrale" / "models" / "abc"
    folder.mkdir(parents=True)
    model = PreparedModel(
        name="x",
        context_length=1,
        vocab_size=1,
        eos_token_ids=(0,),
        tokenizer_kind="hf",
        tokenizer_file="tokenizer.json",
        source=str(source),
    )
    save_prepared(model, folder)
    return folder


def test_what_the_hubs_cache_holds(cache: Path) -> None:
    fetched(cache, "org/small-GGUF", "small.Q4_K_M.gguf")
    fetched(cache, "org/whole--odd", "model.safetensors", "config.json")
    fetched(cache, "org/cut", "x.gguf", cut=True)
    fetched(cache, "org/tokenizer", "tokenizer.json")
    (cache / "datasets--org--set").mkdir()
    (cache / "version.txt").touch()
    found = {each.name: each for each in stored_models(cache) if each.folder is not None}
    assert [*found] == ["org/cut", "org/small-GGUF", "org/whole--odd"]
    assert found["org/small-GGUF"].engines == ("cpu",)
    assert found["org/small-GGUF"].files == ("small.Q4_K_M.gguf",)
    assert found["org/whole--odd"].engines == ("cpu", "vllm")
    assert found["org/whole--odd"].size == 2000
    assert found["org/cut"].partial
    assert found["org/whole--odd"].used > 1e9


def test_what_comes_with_maestrale_is_listed_and_stays(cache: Path, tmp_path: Path) -> None:
    bundled = [each for each in stored_models(cache) if each.folder is None]
    if not bundled:
        pytest.skip("its package is not installed here")
    with pytest.raises(ModelError, match="comes with maestrale"):
        remove(bundled[0], tmp_path)


def test_one_is_removed_with_what_was_prepared_of_it(cache: Path, tmp_path: Path) -> None:
    folder = fetched(cache, "org/small-GGUF", "small.gguf")
    other = fetched(cache, "org/small-GGUF-2", "small.gguf")
    made = prepared(tmp_path, folder / "snapshots" / "c0ffee" / "small.gguf")
    runner = CliRunner()
    asked = runner.invoke(command, ["rm", "ORG/small-gguf"], input="n\n")
    assert asked.exit_code == 1
    assert folder.is_dir()
    done = runner.invoke(command, ["rm", "org/small-GGUF", "--yes"])
    assert "Removed org/small-GGUF: 1.0 kB." in done.output
    assert not folder.exists()
    assert not made.exists()
    assert other.is_dir()
    with pytest.raises(ModelError, match=r"no model 'org/x' on the disk; there is: .*GGUF-2"):
        find_stored(cache, "org/x")


def test_a_known_name_stands_for_where_its_files_come_from(cache: Path) -> None:
    gguf = "TheBloke/Mistral-7B-Instruct-v0.1-GGUF"
    fetched(cache, gguf, "mistral.Q4_K_M.gguf")
    for name in ("mistral-7b-instruct-v0.1", gguf, f"{gguf}:Q4_K_M"):
        assert find_stored(cache, name).name == gguf
    fetched(cache, "mistralai/Mistral-7B-Instruct-v0.1", "model.safetensors")
    with pytest.raises(ModelError, match=r"on the disk as mistralai/.* and .*GGUF: say which"):
        find_stored(cache, "mistral-7b-instruct-v0.1")


def test_what_was_prepared_of_a_model_with_a_longer_name_stays(cache: Path, tmp_path: Path) -> None:
    fetched(cache, "org/small", "small.gguf")
    other = fetched(cache, "org/small-2", "small.gguf")
    made = prepared(tmp_path, other / "snapshots" / "c0ffee" / "small.gguf")
    assert CliRunner().invoke(command, ["rm", "org/small", "--yes"]).exit_code == 0
    assert made.exists()


def test_the_table_and_json(cache: Path) -> None:
    fetched(cache, "org/whole", "model.safetensors")
    runner = CliRunner()
    line = next(
        line for line in runner.invoke(command, ["list"]).output.splitlines() if "org/whole" in line
    )
    assert "1.0 kB" in line
    assert "cpu, vllm" in line
    rows = json.loads(runner.invoke(command, ["list", "--json"]).output)
    assert {"org/whole"} <= {row["name"] for row in rows}


def test_show_tells_a_files_facts(cache: Path, tmp_path: Path) -> None:
    from tiny_mistral import write_tiny_mistral

    path = write_tiny_mistral(tmp_path / "tiny.gguf")
    facts = json.loads(CliRunner().invoke(command, ["show", str(path), "--json"]).output)
    assert facts["architecture"] == "llama"
    assert facts["context_tokens"] > 0
    assert facts["parameters"] > 0
    assert facts["weight_type"][0] in ("F16", "F32")
    folder = fetched(cache, "org/small-GGUF", "small.gguf")
    (folder / "blobs" / "0").write_bytes(path.read_bytes())
    shown = CliRunner().invoke(command, ["show", "org/small-GGUF"]).output
    assert "org/small-GGUF" in shown
    assert "chat template" in shown


def test_what_changes_with_the_weights(tmp_path: Path) -> None:
    from maestrale.models.prepared import load_prepared, weights_stamp

    file = tmp_path / "weights.gguf"
    file.write_bytes(b"1")
    made = prepared(tmp_path, file)
    model = load_prepared(made)
    before = weights_stamp(model, made)
    assert weights_stamp(model, made) == before
    file.write_bytes(b"12")
    assert weights_stamp(model, made) != before
    file.unlink()
    with pytest.raises(ModelError, match="can't be read: No such file"):
        weights_stamp(model, made)

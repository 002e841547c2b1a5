from __future__ import annotations

from pathlib import Path

import pytest

from maestrale.cli.serve import chosen_models
from maestrale.config.models import load_models
from maestrale.config.settings import Settings
from maestrale.errors import ModelError, SettingsError

HOME = {"HOME": "/home/nobody"}
TABLES = """
[serve]
max_num_seqs = 8
[[model]]
name = "chat"
aliases = ["gpt-4o", "default"]
source = "./chat.gguf"
pinned = true
[[model]]
name = "coder"
source = "./coder.gguf"
max_model_len = 2048
kv_cache_memory = "64MiB"
keep_alive = "30s"
engine = "cpu"
max_num_seqs = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "maestrale.toml"
    path.write_text(TABLES)
    return path


def models(file: Path | None, *names: str, **flags: object) -> list[Settings]:
    return load_models(names, flags, HOME, file)[1]


def wrong(tmp_path: Path, table: str, serve: str = "") -> str:
    """What is said of a file with this table."""
    path = tmp_path / "wrong.toml"
    path.write_text(f"[serve]\n{serve}\n[[model]]\n{table}\n")
    with pytest.raises(SettingsError) as caught:
        models(path)
    return str(caught.value)


def test_without_anything_the_one_model_of_the_settings_is_served() -> None:
    settings, found = load_models((), {"max_model_len": "100"}, HOME)
    assert found == [settings]


def test_each_table_is_a_model_over_what_holds_for_all(file: Path) -> None:
    chat, coder = models(file)
    assert (chat.model, chat.served_model_name) == ("./chat.gguf", ("chat", "gpt-4o", "default"))
    assert (chat.max_num_seqs, coder.max_num_seqs) == (8, 2)
    assert (chat.pinned, coder.pinned) == (("chat",), ())
    assert (chat.max_model_len, coder.max_model_len) == (None, 2048)
    assert coder.kv_cache_bytes == 64 << 20
    assert (chat.keep_alive_seconds, coder.keep_alive_seconds) == (None, 30)


@pytest.mark.parametrize(
    "written", ["{ temperature = 0, top_k = 40 }", '\'{"temperature": 0, "top_k": 40}\'']
)
def test_sampling_defaults_are_a_table_or_json(tmp_path: Path, written: str) -> None:
    path = tmp_path / "maestrale.toml"
    path.write_text(f'[[model]]\nsource = "a"\noverride_generation_config = {written}')
    (found,) = models(path)
    assert found.sampling_overrides == {"temperature": 0, "top_k": 40}


def test_a_flag_for_all_is_weaker_than_a_table(file: Path) -> None:
    chat, coder = models(file, max_model_len="512")
    assert (chat.max_model_len, coder.max_model_len) == (512, 2048)


def test_models_of_the_command_line_are_tables_by_name_or_any(file: Path) -> None:
    other, coder = models(file, "./other.gguf", "coder")
    assert (other.model, other.served_model_name, other.max_num_seqs) == ("./other.gguf", (), 8)
    assert (coder.model, coder.max_model_len) == ("./coder.gguf", 2048)
    assert [each.model for each in models(file, "gpt-4o")] == ["./chat.gguf"]
    assert [each.model for each in models(None, "a", "b")] == ["a", "b"]


def test_a_variable_names_one_model_instead_of_the_tables(file: Path) -> None:
    found = load_models((), {}, {**HOME, "MAESTRALE_MODEL": "coder"}, file)[1]
    assert [each.served_model_name for each in found] == [("coder",)]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('source = "a"\nmax_model_length = 5', "did you mean max_model_len"),
        ('source = "a"\nmodel = "b"', "'model' is no setting of a model; here it is called source"),
        ('source = "a"\ncontext = 80', "here it is called max_model_len"),
        ('source = "a"\ndraft = "b"', "'draft' is no setting of a model: tokens are drafted"),
        ('source = "a"\ntemperature = 1', "give override_generation_config = { temperature = 1 }"),
        (
            'source = "a"\noverride_generation_config = { temprature = 1 }',
            "'temprature' is no default that can be given; did you mean temperature?",
        ),
        (
            'source = "a"\noverride_generation_config = { top_p = 2 }',
            "override_generation_config of [[model]] 1",
        ),
        ('source = "a"\noverride_generation_config = "high"', "a table is needed"),
        ('source = "a"\nport = 80', "'port' is no setting of a model: it is the server's"),
        ('source = "a"\nmax_model_len = "long"', "max_model_len of [[model]] 1"),
        ('source = "a"\nkeep_alive = "soon"', "a time is needed"),
        ('source = "a"\nname = "x"\npinned = 3', "pinned of [[model]] 1"),
        ('source = "a"\npinned = true', "'pinned' needs a 'name' too"),
        ('source = "a"\nname = ["x"]', "name of [[model]] 1"),
        ('name = "a"', "has no 'source'"),
        ('source = ""', "source of [[model]] 1"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path: Path, table: str, words: str) -> None:
    told = wrong(tmp_path, table)
    assert words in told
    assert "wrong.toml" in told


def test_a_model_under_serve_contradicts_tables(tmp_path: Path) -> None:
    assert "contradict" in wrong(tmp_path, 'source = "a"', 'model = "b"')


def test_a_table_of_one_is_told_apart_from_an_old_key(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    path.write_text('model = "x"\n')
    with pytest.raises(SettingsError, match="belongs under"):
        models(path)


def test_other_commands_read_the_same_file(file: Path) -> None:
    from maestrale.config.reading import load_settings

    assert load_settings({}, HOME, file).max_num_seqs == 8


@pytest.mark.parametrize("name", ["served_model_name", "revision", "chat_template"])
def test_what_is_of_one_model_is_refused_for_several(name: str, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("")
    value = str(template) if name == "chat_template" else "x"
    with pytest.raises(SettingsError, match="is for one model, and 2"):
        chosen_models(("a", "b"), {name: value}, HOME, None)
    _, found = chosen_models(("a",), {name: value}, HOME, None)
    assert len(found) == 1


def test_a_folder_of_models(tmp_path: Path) -> None:
    for name in ("b.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "mmproj-b.gguf"):
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.json").touch()
    _, found = chosen_models((), {"models_dir": str(tmp_path)}, HOME, None)
    assert [each.served_model_name for each in found] == [("b",), ("big",), ("whole",)]
    assert found[0].model == str(tmp_path / "b.gguf")
    _, more = chosen_models(("x",), {"models_dir": str(tmp_path)}, HOME, None)
    assert [each.model for each in more][:1] == ["x"]
    assert len(more) == 4


def test_a_folder_without_models_or_with_two_of_one_name(tmp_path: Path) -> None:
    flags = {"models_dir": str(tmp_path)}
    with pytest.raises(ModelError, match="There is no model in"):
        chosen_models((), flags, HOME, None)
    with pytest.raises(ModelError, match="can't be read"):
        chosen_models((), {"models_dir": str(tmp_path / "none")}, HOME, None)
    (tmp_path / "b.gguf").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").touch()
    with pytest.raises(ModelError, match="both be called b"):
        chosen_models((), flags, HOME, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("30s", 30), ("2h", 7200), ("90", 90), ("0", 0), ("-1", None)],
)
def test_times_without_a_request(text: str, seconds: float | None) -> None:
    assert load_models((), {"keep_alive": text}, HOME)[0].keep_alive_seconds == seconds


def test_replicas_that_always_run_are_never_unloaded() -> None:
    with pytest.raises(SettingsError, match="--keep-alive and Ray's replicas contradict"):
        load_models((), {"keep_alive": "5m", "replicas": "2"}, HOME)
    settings, _ = load_models((), {"keep_alive": "5m", "replicas": "0-2"}, HOME)
    assert (settings.replica_range, settings.keep_alive_seconds) == ((0, 2), 300)


@pytest.mark.parametrize("other", ["ray_join", "api_nodes"])
def test_only_who_deploys_replicas_can_begin_at_none(other: str) -> None:
    flags = {"replicas": "0-2", "ray_address": "10.0.0.1:6379"}
    value = {"ray_join": True, "api_nodes": "all"}[other]
    with pytest.raises(SettingsError, match=r"--replicas and --.* contradict each other: only"):
        load_models((), {**flags, other: value}, HOME)


def tables(tmp_path: Path, text: str, **flags: object) -> list[Settings]:
    path = tmp_path / "maestrale.toml"
    path.write_text(text)
    return models(path, **flags)


def test_each_model_has_replicas_of_its_own(tmp_path: Path) -> None:
    text = """
[serve]
keep_alive = "10m"
[[model]]
source = "a"
replicas = "0-4"
[[model]]
source = "b"
replicas = 2
[[model]]
source = "c"
"""
    found = tables(tmp_path, text)
    assert [each.replica_range for each in found] == [(0, 4), (2, 2), None]
    assert [each.keep_alive_seconds for each in found] == [600, None, 600]


def test_replicas_of_a_table_and_its_keep_alive_contradict_each_other(tmp_path: Path) -> None:
    told = wrong(tmp_path, 'source = "a"\nreplicas = "1-2"\nkeep_alive = "5m"')
    assert "keep_alive of [[model]] 1" in told
    assert "at least 1 always run" in told
    assert "replicas of [[model]] 1" in wrong(tmp_path, 'source = "a"\nreplicas = "many"')


GPU_AND_CPU = """
[serve]
gpu_memory_utilization = 0.8
[[model]]
source = "mistralai/Mistral-7B-Instruct-v0.3"
engine = "vllm"
[[model]]
source = "coder.gguf"
engine = "cpu"
cpu_level = "avx2"
"""


def test_what_is_said_for_all_goes_to_the_models_whose_engine_knows_it(tmp_path: Path) -> None:
    gpu, cpu = tables(tmp_path, GPU_AND_CPU)
    assert gpu.engine_options == {"gpu_memory_utilization": "0.8"}
    assert cpu.engine_options == {"cpu_level": "avx2"}
    assert (gpu.engine, cpu.engine) == ("vllm", "cpu")


def test_what_no_model_can_use_is_refused(tmp_path: Path) -> None:
    text = GPU_AND_CPU.replace('engine = "vllm"', 'engine = "cpu"')
    with pytest.raises(SettingsError, match="is for --engine vllm, and none of the models has"):
        tables(tmp_path, text)
    with pytest.raises(SettingsError, match=r"cpu_level of \[\[model\]\] 2 .* is for --engine cpu"):
        tables(tmp_path, text.replace('engine = "cpu"\ncpu', 'engine = "vllm"\ncpu'))


@pytest.mark.parametrize(
    ("more", "fits"),
    [
        ("", False),
        ("gpu_memory_utilization = 0.5", True),
        ("replicas = 1", True),
        ("kv_cache_memory = '1GiB'", True),
    ],
)
def test_models_on_one_gpu_need_their_shares_of_it(tmp_path: Path, more: str, fits: bool) -> None:
    path = tmp_path / "maestrale.toml"
    table = f'[[model]]\nsource = "%s"\nengine = "vllm"\n{more}\n'
    path.write_text(table % "a" + table % "b")
    if fits:
        assert len(chosen_models((), {}, HOME, path)[1]) == 2
    else:
        with pytest.raises(SettingsError, match=r"take 180% of their GPUs' memory together"):
            chosen_models((), {}, HOME, path)

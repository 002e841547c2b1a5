"""Settings: where they come from, what goes first, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.config import settings as config
from maestrale.config.reading import load_settings, settings_files
from maestrale.config.settings import Settings
from maestrale.config.values import parse_size
from maestrale.errors import SettingsError

HOME = {"HOME": "/home/somebody"}


def load(
    flags: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    return load_settings(flags or {}, {**HOME, **(environment or {})}, file)


def refusal(**given: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**given)
    return str(caught.value)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def toml(text: str) -> Path:
    Path("settings.toml").write_text(text)
    return Path("settings.toml")


def test_nothing_given_gives_the_defaults() -> None:
    settings = load()
    assert settings.model == config.BUNDLED_MODEL
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.kv_cache_bytes is None
    assert settings.cache_dir == Path("/home/somebody/.cache/maestrale")


def test_flag_goes_before_variable_before_file_before_default() -> None:
    file = toml("[serve]\nport = 1\nmax_n = 2\nmax_waiting = 3\n")
    settings = load(
        {"port": "11", "seed": None}, {"MAESTRALE_PORT": "12", "MAESTRALE_MAX_N": "13"}, file
    )
    assert (settings.port, settings.max_n, settings.max_waiting) == (11, 13, 3)
    assert settings.max_num_seqs is None


def test_what_only_some_engines_know_is_given_to_the_engine_as_options() -> None:
    assert load().engine_options == {}
    given = {"tensor_parallel_size": "2", "enforce_eager": True, "dtype": "bfloat16"}
    settings = load({"engine": "vllm", **given})
    assert settings.engine_options == {
        "tensor_parallel_size": "2",
        "dtype": "bfloat16",
        "enforce_eager": "True",
    }


def test_every_setting_can_be_given_in_all_three_ways() -> None:
    Path("there.pem").touch()
    pair = {"ssl_certfile": "there.pem", "ssl_keyfile": "there.pem"}
    examples: dict[Any, tuple[Any, str]] = {  # type → TOML value, and the same as text
        int: (7, "7"),
        float: (2.5, "2.5"),
        str: ("another", "another"),
        Path: ("there.pem", "there.pem"),
        tuple[str, ...]: (["https://a", "https://b"], "https://a,https://b"),
    }
    cluster = {"ray_address": "10.0.0.1:6379"}
    needs = {"ray_token_file": cluster, "ray_join": cluster, "api_nodes": cluster}
    for name, field in config.fields().items():
        rules = field.metadata["rules"]
        if rules.get("choices"):
            value = text = rules["choices"][-1]
        elif rules.get("size"):
            value = text = "3MiB"
        elif rules.get("duration"):
            value = text = "5m"
        elif rules.get("sampling"):
            value = text = '{"top_k": 5}'
        elif name == "cache_dir":
            value = text = "elsewhere"
        elif name == "replicas":
            value = text = "1-4"
        elif name == "gpu_memory_utilization":
            value, text = 0.5, "0.5"
        elif name == "otlp_traces_endpoint":
            value = text = "http://collector:4318"
        elif config.field_type(name) is bool:
            value, text = not field.default, str(not field.default).lower()
        else:
            value, text = examples[config.field_type(name)]
        literal = text if isinstance(value, bool) else repr(value)
        file = toml(f"[serve]\n{name} = {literal}\n")
        others = {key: path for key, path in pair.items() if name in pair and key != name}
        others |= needs.get(name, {})
        if config.engines_of(name):
            others["engine"] = config.engines_of(name)[0]
        given = {
            getattr(load({**others, name: text}), name),
            getattr(load(others, {config.variable(name): text}), name),
            getattr(load(others, {}, file), name),
        }
        assert len(given) == 1, name
        assert given != {getattr(load(), name)}, name


def test_maestrale_toml_in_the_working_folder_is_read() -> None:
    Path("maestrale.toml").write_text("[serve]\nport = 9\n")
    assert load().port == 9


OWN = {
    "host": '"0.0.0.0"', "no_auth": "true", "api_key": '"x"', "key_file": '"k"',
    "made_key_file": '"k"', "allowed_origins": '"*"', "allowed_hosts": '"h"',
    "otlp_traces_endpoint": '"http://c:1"', "log_prompts": "true", "ray_address": '"r:1"',
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_the_folder_one_stands_in_does_not_decide_who_reaches_the_server(name: str) -> None:
    Path("maestrale.toml").write_text(f"[serve]\nport = 9\n{name} = {OWN[name]}\n")
    environment = {"HOME": "/nonexistent/home"}
    with pytest.raises(SettingsError) as caught:
        load(environment=environment)
    told = str(caught.value)
    assert told.startswith(f"{name} in {Path.cwd() / 'maestrale.toml'}: ")
    assert "--config maestrale.toml" in told
    assert "/nonexistent/home/.config/maestrale/maestrale.toml" in told


def test_named_or_in_the_home_folder_it_is_the_users_own(tmp_path: Path) -> None:
    Path("maestrale.toml").write_text('[serve]\nhost = "0.0.0.0"\n')
    assert load(file=Path("maestrale.toml")).host == "0.0.0.0"
    assert load(environment={"MAESTRALE_CONFIG": "maestrale.toml"}).host == "0.0.0.0"
    assert load(environment={"HOME": str(Path.cwd())}).host == "0.0.0.0"


def test_the_users_own_file_is_the_weaker_one(tmp_path: Path) -> None:
    own = tmp_path / "config/maestrale/maestrale.toml"
    own.parent.mkdir(parents=True)
    own.write_text('[serve]\nhost = "0.0.0.0"\nport = 8\nseed = 1\n')
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    Path("maestrale.toml").write_text("[serve]\nport = 9\n")
    settings = load(environment=environment)
    assert (settings.host, settings.port, settings.seed) == ("0.0.0.0", 9, 1)
    assert settings_files(environment) == [own, Path("maestrale.toml")]
    named = load(environment=environment, file=Path("maestrale.toml"))
    assert (named.host, named.port) == ("127.0.0.1", 9)


def test_maestrale_config_names_another_file() -> None:
    file = toml("[serve]\nport = 9\n")
    assert load(environment={"MAESTRALE_CONFIG": str(file)}).port == 9


HTTP = "http://collector:4318"
GENERAL, TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("flags", "environment", "url"),
    [
        ({}, {}, None),
        ({"otlp_traces_endpoint": HTTP}, {}, f"{HTTP}/v1/traces"),
        ({"otlp_traces_endpoint": f"{HTTP}/"}, {}, f"{HTTP}/v1/traces"),
        ({"otlp_traces_endpoint": f"{HTTP}/in"}, {}, f"{HTTP}/in"),
        ({}, {GENERAL: HTTP}, f"{HTTP}/v1/traces"),
        ({}, {GENERAL: f"{HTTP}/otlp/"}, f"{HTTP}/otlp/v1/traces"),
        ({}, {GENERAL: HTTP, TRACES: "https://t/in"}, "https://t/in"),
        ({"otlp_traces_endpoint": "https://f/in"}, {TRACES: "https://t/in"}, "https://f/in"),
        ({}, {TRACES: HTTP, "MAESTRALE_OTLP_TRACES_ENDPOINT": "http://m/in"}, "http://m/in"),
        ({}, {GENERAL: HTTP, "OTEL_SDK_DISABLED": "true"}, None),
        ({}, {GENERAL: HTTP, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({}, {GENERAL: HTTP, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, f"{HTTP}/v1/traces"),
    ],
)
def test_where_traces_go(
    flags: dict[str, Any], environment: dict[str, str], url: str | None
) -> None:
    assert load(flags, environment).traces_url == url


def test_traces_by_grpc_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL.*http/protobuf"):
        load(environment={GENERAL: HTTP, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    with pytest.raises(SettingsError, match="no URL of a collector"):
        load({"otlp_traces_endpoint": "collector:4317"})


def test_a_variable_set_but_empty_counts_as_not_set() -> None:
    assert load(environment={"MAESTRALE_PORT": "", "MAESTRALE_API_KEY": " "}).port == 8000


def test_several_values_by_repeating_and_by_commas() -> None:
    settings = load({"served_model_name": ("a, b", "c")}, {"MAESTRALE_API_KEY": "k1,k2"})
    assert settings.served_model_name == ("a", "b", "c")
    assert settings.api_key == ("k1", "k2")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"flags": {"port": "abc"}}, ["--port", "whole number", "'abc'"]),
        ({"flags": {"port": "70000"}}, ["--port", "from 0 to 65535", "'70000'"]),
        ({"flags": {"max_n": "1.5"}}, ["--max-n", "whole number"]),
        ({"flags": {"max_n": "9" * 5000}}, ["--max-n", "whole number"]),
        ({"flags": {"queue_timeout": "nan"}}, ["--queue-timeout", "number"]),
        ({"flags": {"log_level": "loud"}}, ["--log-level", "debug, info, warning, error"]),
        ({"flags": {"kv_cache_memory": "12 potatoes"}}, ["--kv-cache-memory", "512MiB"]),
        ({"flags": {"kv_cache_memory": "12"}}, ["--kv-cache-memory", "at least 1048576"]),
        ({"flags": {"model": " "}}, ["--model", "text"]),
        (
            {"flags": {"dtype": "float16", "engine": "cpu"}},
            ["--dtype", "--engine vllm", "cpu can't"],
        ),
        (
            {"environment": {"MAESTRALE_ENFORCE_EAGER": "1"}, "flags": {"engine": "scripted"}},
            ["MAESTRALE_ENFORCE_EAGER", "--engine vllm"],
        ),
        ({"flags": {"gpu_memory_utilization": "1.5"}}, ["--gpu-memory-utilization", "to 1"]),
        ({"environment": {"MAESTRALE_SEED": "-1"}}, ["MAESTRALE_SEED", "0", "'-1'"]),
        ({"environment": {"MAESTRALE_DETERMINISTIC": "2"}}, ["MAESTRALE_DETERMINISTIC", "true"]),
        ({"environment": {"MAESTRALE_PROT": "1"}}, ["MAESTRALE_PROT", "mean MAESTRALE_PORT?"]),
        ({"flags": {"ssl_certfile": "a.pem"}}, ["--ssl-certfile", "--ssl-keyfile"]),
        ({"flags": {"chat_template": "no.jinja"}}, ["--chat-template", "no.jinja"]),
        ({"flags": {"no_auth": True, "api_key": ("k",)}}, ["--no-auth", "--api-key"]),
        ({"flags": {"durable": True, "store": False}}, ["--durable", "--no-store"]),
        ({"flags": {"key_file": "no.json"}}, ["--key-file", "no.json"]),
        ({"flags": {"allowed_origins": ("example.org",)}}, ["--allowed-origins", "https://"]),
        ({"flags": {"allowed_origins": ("http://a/b",)}}, ["--allowed-origins", "'http://a/b'"]),
        ({"file": Path("none.toml")}, ["none.toml"]),
        ({"flags": {"api_key": ("",)}}, ["--api-key", "text"]),
        ({"flags": {"served_model_name": (" , ",)}}, ["--served-model-name", "text"]),
    ],
)
def test_a_wrong_value_is_told_by_source_and_remedy(
    given: dict[str, Any], parts: list[str]
) -> None:
    message = refusal(**given)
    assert all(part in message for part in parts), message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[serve]\nprot = 1", ["'prot'", "mean port?"]),
        ("[serv]\nport = 1", ["'serv'", "[serve]"]),
        ("port = 1", ["'port'", "It belongs under [serve]"]),
        ("serve = 1", ["[serve]"]),
        ("[serve]\nport = true", ["port in settings.toml", "whole number"]),
        ("[serve]\ndeterministic = 1", ["deterministic in settings.toml", "true or false"]),
        ("[serve]\nmodel = 1", ["model in settings.toml", "text"]),
        ("[serve]\napi_key = [1]", ["api_key in settings.toml", "list of texts"]),
        ("[serve", ["settings.toml", "can't be read"]),
    ],
)
def test_a_wrong_file_is_told(text: str, parts: list[str]) -> None:
    message = refusal(file=toml(text))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("key", ["pässword-secret", "my secret", "secret\x00"])
def test_a_key_is_never_repeated(key: str) -> None:
    message = refusal(flags={"api_key": (key,)})
    assert "--api-key" in message
    assert "secret" not in message


def test_cache_dir_without_home_is_the_users_own() -> None:
    assert load_settings({}, {}).cache_dir == Path.home() / ".cache/maestrale"
    assert load_settings({}, {"HOME": ""}).cache_dir == Path.home() / ".cache/maestrale"


def test_a_file_where_the_cache_would_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "maestrale").write_text("")
    assert "--cache-dir" in refusal(environment={"XDG_CACHE_HOME": str(tmp_path)})


def test_cache_dir_follows_xdg_only_when_absolute() -> None:
    assert load(environment={"XDG_CACHE_HOME": "/x"}).cache_dir == Path("/x/maestrale")
    assert load(environment={"XDG_CACHE_HOME": "x"}).cache_dir.parts[1] == "home"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1.5 gib", 3 << 29),
        ("1GB", 10**9),
        ("4096", 4096),
        (4096, 4096),
        ("7B", 7),
    ],
)
def test_parse_size(text: object, size: int) -> None:
    assert parse_size(text) == size


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(["KiB", "MiB", "GiB", "TiB"]))
def test_parse_size_is_exact(number: int, unit: str) -> None:
    power = ["KiB", "MiB", "GiB", "TiB"].index(unit) + 1
    assert parse_size(f"{number}{unit}") == number * 1024**power


@given(st.sampled_from(list(config.fields())), st.text(max_size=40))
def test_any_text_for_any_setting_is_taken_or_refused_by_name(name: str, text: str) -> None:
    try:
        message = f"{config.flag(name)}: {load({name: text})}"
    except SettingsError as error:
        message = str(error)
    assert config.flag(name) in message


@pytest.mark.parametrize(
    ("text", "range_"), [("3", (3, 3)), ("1-4", (1, 4)), ("2 - 2", (2, 2)), ("0-3", (0, 3))]
)
def test_replicas_are_a_number_or_a_range(text: str, range_: tuple[int, int]) -> None:
    assert load({"replicas": text}).replica_range == range_


@pytest.mark.parametrize("text", ["", "0", "4-1", "0-0", "-2", "two", "1-", "1-2-3", "9999", "1.5"])
def test_replicas_that_make_no_sense_are_refused_by_name(text: str) -> None:
    with pytest.raises(SettingsError, match="--replicas"):
        load({"replicas": text})


def test_a_cluster_without_a_number_has_one_replica_and_no_ray_is_the_default() -> None:
    assert load({"ray_address": "10.0.0.1:6379"}).replica_range == (1, 1)
    assert load().replica_range is None


def test_a_token_without_a_cluster_is_refused() -> None:
    Path("token").write_text("abc")
    with pytest.raises(SettingsError, match="--ray-token-file needs --ray-address"):
        load({"ray_token_file": "token"})


def test_seeds_drawn_are_not_repeatable_by_several_processes() -> None:
    with pytest.raises(SettingsError, match="--seed and --api-workers contradict"):
        load({"api_workers": "2", "seed": "7"})
    assert load({"api_workers": "1", "seed": "7"}).seed == 7
    with pytest.raises(SettingsError, match="--seed and --api-nodes contradict"):
        load({"api_nodes": "all", "ray_address": "10.0.0.1:6379", "seed": "7"})


def test_api_processes_on_all_nodes_are_for_who_deploys_on_a_cluster() -> None:
    with pytest.raises(SettingsError, match="--api-nodes needs --ray-address"):
        load({"api_nodes": "all"})
    with pytest.raises(SettingsError, match="--api-nodes and --ray-join contradict"):
        load({"api_nodes": "all", "ray_address": "10.0.0.1:6379", "ray_join": "true"})
    with pytest.raises(SettingsError, match="this, all"):
        load({"api_nodes": "some", "ray_address": "10.0.0.1:6379"})


SERVICES = {
    "maestrale": {
        "MAESTRALE_SERVICE_HOST": "10.96.3.7",
        "MAESTRALE_SERVICE_PORT": "8000",
        "MAESTRALE_SERVICE_PORT_HTTP": "8000",
        "MAESTRALE_SERVICE_PORT_HTTP_METRICS": "8001",
        "MAESTRALE_PORT": "tcp://10.96.3.7:8000",
        "MAESTRALE_PORT_8000_TCP": "tcp://10.96.3.7:8000",
        "MAESTRALE_PORT_8000_TCP_PROTO": "tcp",
        "MAESTRALE_PORT_8000_TCP_PORT": "8000",
        "MAESTRALE_PORT_8000_TCP_ADDR": "10.96.3.7",
        "MAESTRALE_PORT_53_UDP_ADDR": "fd00::7",
    },
    "maestrale-api": {
        "MAESTRALE_API_SERVICE_HOST": "10.96.3.7",
        "MAESTRALE_API_SERVICE_PORT": "8000",
        "MAESTRALE_API_PORT": "tcp://10.96.3.7:8000",
        "MAESTRALE_API_PORT_8000_TCP": "tcp://10.96.3.7:8000",
    },
    "maestrale-raycluster-x7-head-svc": {
        "MAESTRALE_RAYCLUSTER_X7_HEAD_SVC_SERVICE_HOST": "10.96.3.8",
        "MAESTRALE_RAYCLUSTER_X7_HEAD_SVC_SERVICE_PORT_DASHBOARD": "8265",
        "MAESTRALE_RAYCLUSTER_X7_HEAD_SVC_PORT_8265_TCP_PORT": "8265",
        "MAESTRALE_RAYCLUSTER_X7_HEAD_SVC_PORT": "tcp://[fd00::1]:6379",
    },
}


@pytest.mark.parametrize("service", SERVICES)
def test_the_variables_that_kubernetes_makes_for_a_service_are_no_settings(service: str) -> None:
    settings = load(environment=SERVICES[service])
    assert settings == load()
    assert load({"port": "81"}, SERVICES[service]).port == 81


def test_a_port_that_is_one_is_still_read_and_a_wrong_name_still_refused() -> None:
    assert load(environment={"MAESTRALE_PORT": "81"}).port == 81
    assert "MAESTRALE_PORT" in refusal(environment={"MAESTRALE_PORT": "tcp:81"})
    for name in ("MAESTRALE_API_PORT", "MAESTRALE_SERVICE", "MAESTRALE_PORTS", "MAESTRALE_HOSTS"):
        assert name in refusal(environment={name: "8000"})


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_before_the_file_is_no_part_of_it(end: bytes) -> None:
    Path("bom.toml").write_bytes(b"\xef\xbb\xbf[serve]" + end + b"port = 81" + end)
    assert load(file=Path("bom.toml")).port == 81


def test_a_file_in_another_encoding_is_told_so() -> None:
    Path("windows.toml").write_bytes("[serve]\nport = 81\n".encode("utf-16"))
    assert "UTF-16" in refusal(file=Path("windows.toml"))
    Path("latin.toml").write_bytes(b'[serve]\nmodel = "\xe9"\n')
    assert "not UTF-8 (byte 17)" in refusal(file=Path("latin.toml"))


def test_names_of_files_may_be_any_bytes_and_other_texts_may_not() -> None:
    odd = "t\udcfd.jinja"
    Path(odd).touch()
    assert load({"chat_template": odd, "model": "m\udcff.gguf"}).chat_template == Path(odd)
    assert "--served-model-name" in refusal(flags={"served_model_name": ("a\udcff",)})
    assert "MAESTRALE_REVISION" in refusal(environment={"MAESTRALE_REVISION": "a\udcff"})
    assert "--cache-dir" in refusal(flags={"cache_dir": "/x\udcff"})
    assert "--cache-dir" in refusal(environment={"HOME": "/home/m\udcfcller"})


def test_a_name_that_is_no_utf8_is_told_as_it_was_given() -> None:
    told = refusal(flags={"served_model_name": ("plain", "caf\udce9")})
    assert told.endswith("a text in UTF-8 is needed, but 'plain, caf\\udce9' was given.")

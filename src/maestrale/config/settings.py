"""Every setting, once: its name, type, default, help, and where it can come from.

Order: flag > environment variable > maestrale.toml > default. A field `max_model_len` is the
flag `--max-model-len`, the variable `MAESTRALE_MAX_MODEL_LEN` and the key `max_model_len`
under `[serve]`. Who may reach the server is decided by the user's own files only, not by that of
a folder that one happens to stand in. This module is the only reader of the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maestrale.config.folders import xdg_folder
from maestrale.config.hub import HubSettings, read_hub_settings
from maestrale.config.values import check_text, parse_range, parse_size, read_value
from maestrale.errors import SettingsError
from maestrale.text_files import decode_text

BUNDLED_MODEL = "smollm2-135m-instruct"
SETTINGS_FILE = "maestrale.toml"
ENVIRONMENT_PREFIX = "MAESTRALE_"
# Variables that are not settings of `serve`: tracebacks, another place for maestrale.toml, and
# whether the launcher may install system packages.
OTHER_VARIABLES = ("MAESTRALE_DEBUG", "MAESTRALE_CONFIG", "MAESTRALE_APT")
# What Kubernetes gives each pod for each Service of its namespace, as Docker's links once did.
# A Service named maestrale, or maestrale-api, has them under our own prefix.
_SERVICE_VARIABLE = re.compile(
    r"MAESTRALE_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT = re.compile(r"MAESTRALE_(?:\w+_)?PORT")
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://\S+")


def setting(
    default: Any,
    help: str,
    *,
    group: str,
    metavar: str | None = None,
    **rules: Any,
) -> Any:
    """One field of `Settings`: its default, its help text and its section in `--help`.

    A function as `default` is called for the default. `rules` are those of
    `setting_values.read_value`, and `secret`: never repeat the value; `engines`: those that
    know it; `own`: decides who reaches the server or where it reports to, so only the user's own
    files may set it.
    """
    if rules.get("engines"):
        help = f"{help} For --engine {' or '.join(rules['engines'])}."
    metadata = {"help": help, "group": group, "metavar": metavar, "rules": rules}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_cache_dir(environment: Mapping[str, str] | None = None) -> Path:
    """`$XDG_CACHE_HOME/maestrale`, or `~/.cache/maestrale`; works without HOME.

    Raises: SettingsError when this user has no home folder at all.
    """
    environment = os.environ if environment is None else environment
    return xdg_folder(environment, "XDG_CACHE_HOME", "set --cache-dir") / "maestrale"


def default_key_file(environment: Mapping[str, str] | None = None) -> Path:
    """`$XDG_CONFIG_HOME/maestrale/keys.json`, or `~/.config/maestrale/keys.json`.

    Raises: SettingsError when this user has no home folder at all.
    """
    environment = os.environ if environment is None else environment
    folder = xdg_folder(environment, "XDG_CONFIG_HOME", "name the key file")
    return folder / "maestrale" / "keys.json"


def default_settings_file(environment: Mapping[str, str] | None = None) -> Path | None:
    """`$XDG_CONFIG_HOME/maestrale/maestrale.toml`, or below ~/.config; None without a home."""
    try:
        return default_key_file(environment).with_name(SETTINGS_FILE)
    except SettingsError:
        return None


def hub_settings(environment: Mapping[str, str] | None = None) -> HubSettings:
    """How the model hub is reached, by Hugging Face's variables. Raises: SettingsError."""
    return read_hub_settings(os.environ if environment is None else environment)


def default_history_file(environment: Mapping[str, str] | None = None) -> Path | None:
    """`$XDG_STATE_HOME/maestrale/chat-history`, or below ~/.local/state; None without a home."""
    environment = os.environ if environment is None else environment
    try:
        return xdg_folder(environment, "XDG_STATE_HOME") / "maestrale" / "chat-history"
    except SettingsError:
        return None


def default_machines_dir(environment: Mapping[str, str] | None = None) -> Path:
    """`$XDG_STATE_HOME/maestrale/machines`: what `create` made, and SkyPilot's own records.

    Raises: SettingsError when this user has no home folder at all.
    """
    environment = os.environ if environment is None else environment
    return xdg_folder(environment, "XDG_STATE_HOME") / "maestrale" / "machines"


def default_data_dir(environment: Mapping[str, str] | None = None) -> Path:
    """`$XDG_DATA_HOME/maestrale`, or `~/.local/share/maestrale`.

    Raises: SettingsError when this user has no home folder at all.
    """
    environment = os.environ if environment is None else environment
    return xdg_folder(environment, "XDG_DATA_HOME") / "maestrale"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that `maestrale serve` can be told. Flags carry vLLM's names where vLLM has one."""

    model: str = setting(
        BUNDLED_MODEL,
        "Model to serve: a known name, a name on the Hugging Face hub, a .gguf file, or a folder.",
        group="Model",
        metavar="MODEL",
    )
    revision: str | None = setting(
        None,
        "Branch, tag or commit of a model on the hub. Default: main.",
        group="Model",
        metavar="NAME",
    )
    served_model_name: tuple[str, ...] = setting(
        (),
        "Name(s) the API knows the model by; the first is given in answers. "
        "Default: the model's name.",
        group="Model",
        metavar="NAME",
    )
    max_model_len: int | None = setting(
        None,
        "Longest prompt and answer together, in tokens. Default: the model's own limit.",
        group="Model",
        metavar="TOKENS",
        minimum=1,
    )
    chat_template: Path | None = setting(
        None,
        "Jinja chat template to use instead of the model's own.",
        group="Model",
        metavar="FILE",
    )

    tool_call_parser: str | None = setting(
        None,
        "How the model writes tool calls, where its chat template doesn't tell.",
        group="Model",
        metavar="NAME",
        choices=(
            "hermes",
            "qwen3_coder",
            "glm45",
            "deepseek_v3",
            "deepseek_v31",
            "kimi_k2",
            "granite",
            "pythonic",
            "lfm2",
            "gemma4",
            "functiongemma",
            "llama3_json",
            "mistral",
            "openai",
        ),
    )
    generation_config: str = setting(
        "auto",
        "Temperature, top_p and the like of requests that leave them open: auto takes what the "
        "model's makers advise, vllm takes neutral ones (temperature 1).",
        group="Model",
        choices=("auto", "vllm"),
    )
    enable_auto_tool_choice: bool = setting(
        True,
        "Tool calls at the model's own choice; off: only those that a request demands.",
        group="Model",
    )

    engine: str = setting(
        "auto",
        "Engine to run: cpu, or vllm on NVIDIA GPUs; scripted is for tests.",
        group="Engine",
        metavar="NAME",
        choices=("auto", "cpu", "vllm", "scripted"),
    )
    deterministic: bool = setting(
        True,
        "The same request gives the same tokens at any load.",
        group="Engine",
    )
    max_num_seqs: int | None = setting(
        None,
        "Most sequences decoded at once; more wait. Default: 64; on a GPU vLLM's own.",
        group="Engine",
        metavar="N",
        minimum=1,
        maximum=4096,
    )
    max_num_batched_tokens: int | None = setting(
        None,
        "Most tokens in one step, so the chunk in which long prompts are prefilled (on the CPU "
        "at most 80 tokens beside running answers). Default: 256, or what `maestrale tune` found; "
        "vLLM's own on a GPU.",
        group="Engine",
        metavar="N",
        minimum=1,
    )
    kv_cache_memory: str | None = setting(
        None,
        "Memory for the KV cache, as 512MiB or 2GiB. Default: what the context needs, at least "
        "1GiB where memory allows; on a GPU what --gpu-memory-utilization leaves.",
        group="Engine",
        metavar="SIZE",
        size=True,
        minimum=1 << 20,
    )
    enable_prefix_caching: bool = setting(
        True, "Reuse the KV cache of a prompt's beginning that was seen before.", group="Engine"
    )
    cpu_level: str | None = setting(
        None,
        "Instruction set of the CPU engine's kernel. All give the same answers. Default: the "
        "fastest that this CPU has.",
        group="Engine",
        metavar="NAME",
        choices=("scalar", "avx2", "avx512", "amx", "neon", "i8mm"),
        engines=("cpu",),
    )
    threads: int | None = setting(
        None,
        "CPU threads for the engine. Default: every core it may use, or what `maestrale tune` "
        "found.",
        group="Engine",
        metavar="N",
        minimum=1,
        maximum=4096,
    )
    tensor_parallel_size: int | None = setting(
        None,
        "GPUs that share each layer.",
        group="Engine",
        metavar="N",
        minimum=1,
        engines=("vllm",),
    )
    pipeline_parallel_size: int | None = setting(
        None,
        "GPUs, or groups of them, that take the layers in turn.",
        group="Engine",
        metavar="N",
        minimum=1,
        engines=("vllm",),
    )
    dtype: str | None = setting(
        None,
        "Type of weights and activations. Default: what the model names.",
        group="Engine",
        metavar="TYPE",
        choices=("auto", "bfloat16", "float16", "float32", "half", "float"),
        engines=("vllm",),
    )
    quantization: str | None = setting(
        None,
        "How the weights are quantised (awq, gptq, fp8, bitsandbytes, ...). Default: what the "
        "model's folder says.",
        group="Engine",
        metavar="METHOD",
        engines=("vllm",),
    )
    gpu_memory_utilization: float | None = setting(
        None,
        "Share of the GPU's memory that the engine may take. Default: vLLM's own, about 0.9.",
        group="Engine",
        metavar="SHARE",
        minimum=0.01,
        maximum=1,
        engines=("vllm",),
    )
    enforce_eager: bool = setting(
        False,
        "Don't compile the model: starts sooner, runs slower.",
        group="Engine",
        engines=("vllm",),
    )
    seed: int | None = setting(
        None,
        "Makes the seeds drawn for requests without one repeatable.",
        group="Engine",
        metavar="N",
        minimum=0,
        maximum=2**63 - 1,
    )

    replicas: str | None = setting(
        None,
        "Engines to run, as replicas on Ray Serve: a number, or a range as in 1-4, within which "
        "their number follows the load. Needs the extra ray. Default: one engine, without Ray.",
        group="Cluster",
        metavar="N[-M]",
    )
    ray_address: str | None = setting(
        None,
        "Ray cluster to run the replicas on (10.0.0.1:6379). Default: Ray is started here, on "
        "loopback, and ends with the server.",
        group="Cluster",
        metavar="ADDRESS",
        own=True,
    )
    ray_join: bool = setting(
        False,
        "Use the replicas that another maestrale serve, or KubeRay, has deployed on the cluster "
        "at --ray-address; they stay when this server ends.",
        group="Cluster",
    )
    ray_token_file: Path | None = setting(
        None,
        "File with the Ray cluster's token. Default: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
        "~/.ray/auth_token, as Ray reads them.",
        group="Cluster",
        metavar="FILE",
        own=True,
    )
    replica_routing: str = setting(
        "prefix",
        "Which replica gets a request: the one whose cache holds the prompt's beginning, unless "
        "overloaded; or each in turn.",
        group="Cluster",
        metavar="POLICY",
        choices=("prefix", "round_robin"),
    )

    host: str = setting(
        "127.0.0.1",
        "Address to listen on. Any but loopback asks for a key; one is made if none is given.",
        group="Server",
        metavar="ADDRESS",
        own=True,
    )
    port: int = setting(
        8000,
        "Port to listen on; 0 takes a free one.",
        group="Server",
        metavar="PORT",
        minimum=0,
        maximum=65535,
    )
    api_workers: int = setting(
        1,
        "API processes that share the port, in front of the one engine.",
        group="Server",
        metavar="N",
        minimum=1,
        maximum=64,
    )
    api_nodes: str = setting(
        "this",
        "Where API processes run: on this machine, or on every node of the Ray cluster, those that "
        "join later too, on the same port; they end with this server.",
        group="Server",
        metavar="WHERE",
        choices=("this", "all"),
    )
    api_key: tuple[str, ...] = setting(
        (),
        "Key(s) that clients must send as 'Authorization: Bearer KEY'. As a flag other users "
        "of the machine can see it (ps); MAESTRALE_API_KEY and 'maestrale keys' keep it to you.",
        group="Server",
        metavar="KEY",
        secret=True,
        own=True,
    )
    key_file: Path | None = setting(
        None,
        "File of 'maestrale keys'; its keys are asked for, changes need no restart. Default: "
        "$XDG_CONFIG_HOME/maestrale/keys.json or ~/.config/maestrale/keys.json, once it exists.",
        group="Server",
        metavar="FILE",
        own=True,
    )
    made_key_file: Path | None = setting(
        None,
        "File that keeps the key made at start, so that the next start has the same one and "
        "shows it again. Default: none; each start makes another.",
        group="Server",
        metavar="FILE",
        own=True,
    )
    no_auth: bool = setting(
        False,
        "Serve without a key on an address that is not loopback.",
        group="Server",
        own=True,
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        "Web origins that may call the API from a browser (CORS).",
        group="Server",
        metavar="ORIGIN",
        own=True,
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Further Host names accepted on loopback without a key (a reverse proxy's, say).",
        group="Server",
        metavar="HOST",
        own=True,
    )
    ssl_certfile: Path | None = setting(
        None,
        "TLS certificate chain (PEM).",
        group="Server",
        metavar="FILE",
        own=True,
    )
    ssl_keyfile: Path | None = setting(
        None,
        "TLS private key (PEM).",
        group="Server",
        metavar="FILE",
        own=True,
    )

    max_waiting: int = setting(
        256,
        "Requests that may wait for the engine; more get 503.",
        group="Limits",
        metavar="N",
        minimum=0,
    )
    queue_timeout: float = setting(
        600.0,
        "Longest time a request may wait before its first token, in seconds.",
        group="Limits",
        metavar="SECONDS",
        minimum=0,
    )
    max_body_bytes: int = setting(
        16 * 1024 * 1024,
        "Largest request body, in bytes or as 16MiB.",
        group="Limits",
        metavar="SIZE",
        size=True,
        minimum=1024,
    )
    max_n: int = setting(
        16, "Largest 'n' in one request.", group="Limits", metavar="N", minimum=1, maximum=1024
    )
    grammar_timeout: float = setting(
        5.0,
        "Longest time a JSON schema, regex or grammar may take to compile.",
        group="Limits",
        metavar="SECONDS",
        minimum=0.1,
        maximum=600,
    )
    grace: float = setting(
        30.0,
        "Time that answers in flight have to finish after SIGTERM.",
        group="Limits",
        metavar="SECONDS",
        minimum=0,
    )
    max_engine_failures: int = setting(
        5,
        "Engine deaths within failure_window after which requests in flight end with an error.",
        group="Limits",
        metavar="N",
        minimum=1,
    )
    failure_window: float = setting(
        60.0,
        "Window for max_engine_failures.",
        group="Limits",
        metavar="SECONDS",
        minimum=1,
    )

    log_level: str = setting(
        "info",
        "Least severity that is logged.",
        group="Logs",
        metavar="LEVEL",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = setting(
        "text",
        "Lines for people, or one JSON object a line.",
        group="Logs",
        metavar="FORMAT",
        choices=("text", "json"),
    )
    log_prompts: bool = setting(
        False,
        "Write prompts and answers to the log. Off: no prompt text is ever logged.",
        group="Logs",
        own=True,
    )

    otlp_traces_endpoint: str | None = setting(
        None,
        "Send OpenTelemetry traces there, by OTLP over HTTP (http://127.0.0.1:4318); needs the "
        "extra otel. Default: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT, "
        "where set; else no traces.",
        group="Logs",
        metavar="URL",
        own=True,
    )

    cache_dir: Path = setting(
        default_cache_dir,
        "Where prepared models and what is compiled are kept. Default: "
        "$XDG_CACHE_HOME/maestrale, or ~/.cache/maestrale.",
        group="Files",
        metavar="DIR",
    )

    @property
    def traces_url(self) -> str | None:
        """Where traces are posted; the flag may leave out OTLP's usual path."""
        url = self.otlp_traces_endpoint
        if url is None or url.count("/") > 3 or (url.count("/") == 3 and not url.endswith("/")):
            return url
        return url.rstrip("/") + "/v1/traces"

    @property
    def kv_cache_bytes(self) -> int | None:
        return None if self.kv_cache_memory is None else parse_size(self.kv_cache_memory)

    @property
    def replica_range(self) -> tuple[int, int] | None:
        """Fewest and most replicas on Ray Serve; None: one engine, without Ray."""
        if self.replicas is not None:
            return parse_range(self.replicas)
        return (1, 1) if self.ray_address is not None else None

    @property
    def engine_options(self) -> dict[str, str]:
        """What was set of the settings that not every engine knows, by name, as text."""
        values = {name: getattr(self, name) for name in fields() if engines_of(name)}
        return {name: str(value) for name, value in values.items() if value not in (None, False)}


Field = dataclasses.Field[Any]


def fields() -> dict[str, Field]:
    """The fields of `Settings` by name, in the order of the help."""
    return {field.name: field for field in dataclasses.fields(Settings)}


def field_type(name: str) -> Any:
    """The type of a field's value, without the `None` that stands for not set."""
    hint = _HINTS[name]
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return hint


def engines_of(name: str) -> tuple[str, ...]:
    """The engines that a setting is for; empty: for all."""
    engines: tuple[str, ...] = fields()[name].metadata["rules"].get("engines", ())
    return engines


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


_HINTS = typing.get_type_hints(Settings)


def load_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None
) -> Settings:
    """The settings of one start. `flags` are by field name; None stands for not given.

    `file` is a maestrale.toml that must exist; without it, MAESTRALE_CONFIG, then the user's own
    and the one in the working folder are taken where there is one (`settings_files`). A variable
    that is set but empty counts as not set.

    Raises: SettingsError that names the flag, variable or key, and what is allowed.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, value, source in _given(flags, environment, file):
        rules = fields()[name].metadata["rules"]
        try:
            values[name] = read_value(value, field_type(name), rules)
            if name != "model" and field_type(name) is not Path:  # those may be names of files
                check_text(values[name])
        except ValueError as error:
            # A key is never repeated, and no value is repeated at any length.
            came = "" if rules.get("secret") else f", but {str(value)[:60]!r} was given"
            raise SettingsError(f"{source}: {error}{came}.") from error
        sources[name] = source
    if "cache_dir" not in values:
        values["cache_dir"] = default_cache_dir(environment)
    settings = Settings(**values)
    _check_together(settings, sources)
    return settings


def _given(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None
) -> Iterable[tuple[str, Any, str]]:
    """(field, raw value, where it was given), weakest source first."""
    named = file is not None or bool(environment.get("MAESTRALE_CONFIG"))
    for path in settings_files(environment, file):
        stranger = path == _WORKING and not named
        for name, value in _read_toml(path).items():
            if stranger and fields()[name].metadata["rules"].get("own"):
                _check_own(name, environment)
            yield name, value, f"{name} in {path}"
    yield from _standard_variables(environment)
    names = {variable(name): name for name in fields()}
    for key, value in environment.items():
        if _is_of_a_service(key, value):
            continue
        if key in names:
            if value.strip():
                yield names[key], value, key
        elif key.startswith(ENVIRONMENT_PREFIX) and key not in OTHER_VARIABLES:
            known = (*names, *OTHER_VARIABLES)
            raise SettingsError(f"{key} is no setting of maestrale{_closest(key, known)}")
    for name, value in flags.items():
        if value is not None and value != ():
            yield name, value, flag(name)


_WORKING = Path(SETTINGS_FILE)  # in the folder that one happens to stand in


def settings_files(environment: Mapping[str, str], file: Path | None = None) -> list[Path]:
    """The settings files of this start, the strongest last: the one that was named, or the user's
    own and that of the working folder."""
    named = file or environment.get("MAESTRALE_CONFIG", "")
    if named:
        return [Path(named)]
    own = default_settings_file(environment)
    return [path for path in (own, _WORKING) if path is not None and path.is_file()]


def _check_own(name: str, environment: Mapping[str, str]) -> None:
    """Raises: SettingsError for what a file that comes with any folder may not set."""
    here = Path.cwd()
    if environment.get("HOME") and here == Path(environment["HOME"]).absolute():
        return
    own = default_settings_file(environment)
    raise SettingsError(
        f"{name} in {here / _WORKING}: who reaches the server, and where it reports to, is not for "
        "a file that comes with the folder one stands in. If it is yours, name it: --config "
        f"{SETTINGS_FILE} or MAESTRALE_CONFIG{f'; or set this in {own}' if own else ''}."
    )


def _is_of_a_service(name: str, value: str) -> bool:
    """Whether the variable tells of a Service in the network; MAESTRALE_PORT may be either."""
    if _SERVICE_VARIABLE.fullmatch(name):
        return True
    return bool(_SERVICE_PORT.fullmatch(name) and _SERVICE_URL.fullmatch(value))


def _standard_variables(environment: Mapping[str, str]) -> Iterable[tuple[str, Any, str]]:
    """What OpenTelemetry's own variables say of where traces go."""
    if (
        environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        or environment.get("OTEL_TRACES_EXPORTER", "").strip() == "none"
    ):
        return
    for name, path in (
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "/v1/traces"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ""),
    ):
        if url := environment.get(name, "").strip():
            yield "otlp_traces_endpoint", url.rstrip("/") + path if path else url, name
    if any(environment.get(name, "").strip() for name in _OTLP_ENDPOINTS):
        for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if protocol := environment.get(name, "").strip():
                if protocol != "http/protobuf":
                    raise SettingsError(
                        f"{name} is {protocol!r}, but traces are sent as http/protobuf only. Point "
                        "the endpoint at the collector's HTTP port (4318), and set that."
                    )
                return


_OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def _read_toml(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        document = tomllib.loads(decode_text(path.read_bytes()))
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}.") from error
    except ValueError as error:  # tomllib's own, too
        raise SettingsError(f"{path} can't be read: {error}") from error
    for table in document:
        if table != "serve":
            hint = " It belongs under [serve]." if table in fields() else ""
            raise SettingsError(f"{path}: {table!r} is unknown; the settings are in [serve].{hint}")
    serve = document.get("serve", {})
    if not isinstance(serve, dict):
        raise SettingsError(f"{path}: 'serve' must be a table: [serve].")
    for key in serve:
        if key not in fields():
            raise SettingsError(
                f"{path}: {key!r} is no setting of [serve]{_closest(key, fields())}"
            )
    return serve


def _closest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else "."


def _check_together(settings: Settings, sources: Mapping[str, str]) -> None:
    """What a field alone can't tell. Raises: SettingsError."""
    for one, other in (("ssl_certfile", "ssl_keyfile"), ("ssl_keyfile", "ssl_certfile")):
        if getattr(settings, one) is not None and getattr(settings, other) is None:
            raise SettingsError(f"{sources[one]} needs {flag(other)} too.")
    for name in settings.engine_options:
        if settings.engine not in ("auto", *engines_of(name)):
            raise SettingsError(
                f"{sources[name]} is for --engine {' or '.join(engines_of(name))}; "
                f"the engine {settings.engine} can't use it."
            )
    several = "api_workers" if settings.api_workers > 1 else "api_nodes"
    if (settings.api_workers > 1 or settings.api_nodes == "all") and settings.seed is not None:
        raise SettingsError(
            f"{sources['seed']} and {sources[several]} contradict each other: which process "
            "a request reaches is up to the system, so the seeds drawn can't be repeated. Give "
            "each request its seed, or serve with one API process."
        )
    if settings.api_nodes == "all":
        if settings.ray_address is None:
            raise SettingsError(f"{sources['api_nodes']} needs --ray-address too.")
        if settings.ray_join:
            raise SettingsError(
                f"{sources['api_nodes']} and {sources['ray_join']} contradict each other: the "
                "server that deploys the replicas starts the API processes of all nodes."
            )
    try:
        settings.replica_range  # noqa: B018 - raises what is wrong with it
    except ValueError as error:
        raise SettingsError(f"{sources['replicas']}: {error}") from error
    for name in ("ray_token_file", "ray_join"):
        if getattr(settings, name) and settings.ray_address is None:
            raise SettingsError(f"{sources[name]} needs --ray-address too.")
    for name in ("ssl_certfile", "ssl_keyfile", "chat_template", "key_file", "ray_token_file"):
        path = getattr(settings, name)
        if path is not None and not path.is_file():
            raise SettingsError(f"{sources[name]}: there is no file {path}.")
    source = sources.get("cache_dir", flag("cache_dir"))
    try:
        check_text(str(settings.cache_dir))
    except ValueError as error:
        raise SettingsError(
            f"{source}: a folder whose name is UTF-8 is needed for what is kept, and "
            f"{str(settings.cache_dir)!r} is none. Give another with --cache-dir."
        ) from error
    if settings.cache_dir.exists() and not settings.cache_dir.is_dir():
        raise SettingsError(f"{source}: {settings.cache_dir} is not a folder.")
    for name in ("api_key", "key_file"):
        if settings.no_auth and getattr(settings, name):
            raise SettingsError(
                f"{sources['no_auth']} and {sources[name]} contradict each other: "
                "serve with a key, or without."
            )
    for key in settings.api_key:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise SettingsError(
                f"{sources['api_key']}: a key is made of ASCII letters, digits and signs, "
                "without spaces; HTTP headers carry no others."
            )
    url = settings.otlp_traces_endpoint
    if url is not None and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
        raise SettingsError(
            f"{sources['otlp_traces_endpoint']}: {url!r} is no URL of a collector; one looks "
            "like http://127.0.0.1:4318."
        )
    for origin in settings.allowed_origins:
        scheme, separator, rest = origin.partition("://")
        if origin != "*" and (not separator or not scheme or not rest or "/" in rest):
            raise SettingsError(
                f"{sources['allowed_origins']}: {origin!r} is no web origin; one looks like "
                "https://chat.example.org:8443, without a path. '*' allows all."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than localhost can't be trusted."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

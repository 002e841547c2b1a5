"""Every setting, once: its name, type, default, help, and where it can come from.

A field `max_model_len` is the flag `--max-model-len`, the variable `MAESTRALE_MAX_MODEL_LEN` and
the key `max_model_len` under `[serve]` in maestrale.toml. How they are read is in reading.py.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maestrale.config.paths import default_cache_dir, default_store_file
from maestrale.config.sampling import read_sampling
from maestrale.config.values import parse_duration, parse_range, parse_size

BUNDLED_MODEL = "smollm2-135m-instruct"
ENVIRONMENT_PREFIX = "MAESTRALE_"


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
    `values.read_value`, and `secret`: never repeat the value; `engines`: those that
    know it; `own`: decides who reaches the server or where it reports to, so only the user's own
    files may set it.
    """
    if rules.get("engines"):
        help = f"{help} For --engine {' or '.join(rules['engines'])}."
    metadata = {"help": help, "group": group, "metavar": metavar, "rules": rules}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


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

    task: str = setting(
        "auto",
        "What the model is served for: chat, embeddings, or to rerank documents. auto: what it was "
        "made for, by its own files.",
        group="Model",
        choices=("auto", "chat", "embed", "rerank"),
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
    override_generation_config: str | None = setting(
        None,
        "Your own in the place of those: temperature, top_p, top_k, min_p, repetition_penalty. "
        "As JSON, or a table in maestrale.toml.",
        group="Model",
        metavar="JSON",
        sampling=True,
    )
    enable_auto_tool_choice: bool = setting(
        True,
        "Tool calls at the model's own choice; off: only those that a request demands.",
        group="Model",
    )

    models_dir: Path | None = setting(
        None,
        "Serve each model in this folder: .gguf files and folders, by their names.",
        group="Several models",
        metavar="DIR",
    )
    pinned: tuple[str, ...] = setting(
        (),
        "Name(s) of models that are loaded at the start and stay so.",
        group="Several models",
        metavar="NAME",
    )
    keep_alive: str | None = setting(
        None,
        "Time without a request after which a model is unloaded (30s, 5m, 2h; -1 for never). "
        "Default: 5m where several are served, never where it is one without --replicas 0-N.",
        group="Several models",
        metavar="TIME",
        duration=True,
    )
    memory_budget: str | None = setting(
        None,
        "Memory that the models which are loaded may take together. Default: what is available "
        "at the start.",
        group="Several models",
        metavar="SIZE",
        size=True,
        minimum=1 << 20,
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
        "their number follows the load; 0-4 unloads an idle model (--keep-alive). Needs the extra "
        "ray. Default: one engine, without Ray.",
        group="Cluster",
        metavar="N[-M]",
        range=True,
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
    unknown_fields: str = setting(
        "refuse",
        "What happens to a field of a request that the server doesn't know: refused with 400, or "
        "ignored, and named in the answer's header x-ignored-fields.",
        group="Server",
        metavar="WHAT",
        choices=("refuse", "ignore"),
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
    handover_grace: float = setting(
        3600.0,
        "Time that answers in flight have to finish once another server has taken over (SIGHUP).",
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

    metrics_by_key: bool = setting(
        False,
        "Tell in /metrics what each key has used of each model, too.",
        group="Logs",
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
    store: bool = setting(
        True,
        "Keep the answers of /v1/responses, with their prompts, unless a request says store: "
        "false. Off: none is kept.",
        group="Files",
    )
    store_file: Path | None = setting(
        None,
        "Where they are kept, for this user's eyes only. Default: "
        "$XDG_STATE_HOME/maestrale/responses.db, or below ~/.local/state.",
        group="Files",
        metavar="FILE",
        own=True,
    )
    store_days: float = setting(
        30.0,
        "How long one is kept after it was last used, in days.",
        group="Files",
        metavar="DAYS",
        minimum=0,
    )
    store_size: int = setting(
        1 << 30,
        "Most of them together, in bytes or as 2GiB; those unused for longest go first.",
        group="Files",
        metavar="SIZE",
        size=True,
        minimum=1 << 20,
    )

    usage: bool = setting(
        True,
        "Count requests, tokens and seconds by key, model and day ('maestrale usage'). Off: "
        "nothing is written, and limits a day or a month begin anew with the server.",
        group="Files",
    )
    usage_file: Path | None = setting(
        None,
        "Where they are counted, for this user's eyes only. Default: usage.db beside the key file.",
        group="Files",
        metavar="FILE",
        own=True,
    )

    @property
    def usage_path(self) -> Path | None:
        """Where usage is counted; None: nowhere."""
        if not self.usage:
            return None
        beside = None if self.key_file is None else self.key_file.with_name("usage.db")
        return self.usage_file if self.usage_file is not None else beside

    durable: bool = setting(
        False,
        "Streams can be gone on with after a lost connection, or a restart: their requests are "
        "kept for a while, beside --store-file.",
        group="Files",
    )
    durable_minutes: float = setting(
        60.0,
        "How long such a request, or an answer with an Idempotency-Key, is kept after its end, in "
        "minutes.",
        group="Files",
        metavar="MINUTES",
        minimum=2,  # what is still made is marked each minute
    )

    @property
    def ledger_path(self) -> Path | None:
        """The file of requests that can be asked for again; None: none are kept."""
        path = self.store_path
        return None if path is None else path.with_name(f"{path.stem}.ledger{path.suffix}")

    @property
    def store_path(self) -> Path | None:
        """The file of kept responses; None: none are kept."""
        if not self.store:
            return None
        return self.store_file if self.store_file is not None else default_store_file()

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
    def budget_bytes(self) -> int | None:
        return None if self.memory_budget is None else parse_size(self.memory_budget)

    @property
    def sampling_overrides(self) -> dict[str, float]:
        """The operator's own sampling defaults, by name."""
        written = self.override_generation_config
        return {} if written is None else read_sampling(written)

    @property
    def keep_alive_seconds(self) -> float | None:
        """After so many seconds without a request a model is unloaded; None: never, or not set."""
        return None if self.keep_alive is None else parse_duration(self.keep_alive)

    @property
    def replica_range(self) -> tuple[int, int] | None:
        """Fewest and most replicas on Ray Serve, 0 where an idle model is unloaded; None: one
        engine, without Ray.
        """
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

"""Every setting, once: its name, type, default, help, and where it can come from.

Order: flag > environment variable > maestrale.toml > default. A field `max_model_len` is the
flag `--max-model-len`, the variable `MAESTRALE_MAX_MODEL_LEN` and the key `max_model_len`
under `[serve]`. This module is the only reader of the environment.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUNDLED_MODEL = "smollm2-135m-instruct"


def setting(default: Any, help: str, *, group: str, metavar: str | None = None) -> Any:
    """One field of `Settings`: its default, its help text and its section in `--help`."""
    metadata = {"help": help, "group": group, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that `maestrale serve` can be told. Flags carry vLLM's names where vLLM has one."""

    model: str = setting(
        BUNDLED_MODEL,
        "Model to serve: a known name, a .gguf file, or a folder with an OpenVINO model.",
        group="Model",
    )
    served_model_name: tuple[str, ...] = setting(
        (),
        "Name(s) the API knows the model by; the first is given in answers. Default: the model's name.",
        group="Model",
        metavar="NAME",
    )
    max_model_len: int | None = setting(
        None,
        "Longest prompt and answer together, in tokens. Default: the model's own limit.",
        group="Model",
        metavar="TOKENS",
    )
    chat_template: Path | None = setting(
        None,
        "Jinja chat template to use instead of the model's own.",
        group="Model",
        metavar="FILE",
    )

    engine: str = setting(
        "auto", "Engine to run: auto, openvino, or scripted (for tests).", group="Engine"
    )
    deterministic: bool = setting(
        True,
        "The same request gives the same tokens at any load.",
        group="Engine",
    )
    max_num_seqs: int = setting(
        64, "Most sequences decoded at once; more wait.", group="Engine", metavar="N"
    )
    max_num_batched_tokens: int = setting(
        256,
        "Most tokens in one step. Long prompts are prefilled in chunks of this size.",
        group="Engine",
        metavar="TOKENS",
    )
    kv_cache_memory: str = setting(
        "1GiB", "Memory for the KV cache, as 512MiB or 2GiB.", group="Engine", metavar="SIZE"
    )
    enable_prefix_caching: bool = setting(
        True, "Reuse the KV cache of a prompt's beginning that was seen before.", group="Engine"
    )
    threads: int | None = setting(
        None, "CPU threads for the engine. Default: every core it may use.", group="Engine"
    )
    seed: int | None = setting(
        None,
        "Makes the seeds drawn for requests without one repeatable.",
        group="Engine",
        metavar="N",
    )

    host: str = setting(
        "127.0.0.1",
        "Address to listen on. Any but loopback asks for a key; one is made if none is given.",
        group="Server",
    )
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", group="Server")
    api_key: tuple[str, ...] = setting(
        (), "Key(s) that clients must send as 'Authorization: Bearer KEY'.", group="Server",
        metavar="KEY",
    )
    no_auth: bool = setting(
        False, "Serve without a key on an address that is not loopback.", group="Server"
    )
    allowed_origins: tuple[str, ...] = setting(
        (), "Web origins that may call the API from a browser (CORS).", group="Server",
        metavar="ORIGIN",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Further Host names accepted on loopback without a key (a reverse proxy's, say).",
        group="Server",
        metavar="HOST",
    )
    ssl_certfile: Path | None = setting(
        None, "TLS certificate chain (PEM).", group="Server", metavar="FILE"
    )
    ssl_keyfile: Path | None = setting(
        None, "TLS private key (PEM).", group="Server", metavar="FILE"
    )

    max_waiting: int = setting(
        256, "Requests that may wait for the engine; more get 503.", group="Limits", metavar="N"
    )
    queue_timeout: float = setting(
        600.0,
        "Longest time a request may wait before its first token, in seconds.",
        group="Limits",
        metavar="SECONDS",
    )
    max_body_bytes: int = setting(
        8 * 1024 * 1024, "Largest request body.", group="Limits", metavar="BYTES"
    )
    max_n: int = setting(16, "Largest 'n' in one request.", group="Limits", metavar="N")
    grammar_timeout: float = setting(
        5.0,
        "Longest time a JSON schema, regex or grammar may take to compile.",
        group="Limits",
        metavar="SECONDS",
    )
    grace: float = setting(
        30.0,
        "Time that answers in flight have to finish after SIGTERM.",
        group="Limits",
        metavar="SECONDS",
    )
    max_engine_failures: int = setting(
        5,
        "Engine deaths within failure_window after which requests in flight end with an error.",
        group="Limits",
        metavar="N",
    )
    failure_window: float = setting(
        60.0, "Window for max_engine_failures.", group="Limits", metavar="SECONDS"
    )

    log_level: str = setting("info", "debug, info, warning or error.", group="Logs")
    log_format: str = setting("text", "text or json.", group="Logs")
    log_prompts: bool = setting(
        False, "Write prompts and answers to the log. Off: no prompt text is ever logged.",
        group="Logs",
    )

    cache_dir: Path | None = setting(
        None,
        "Where converted models are kept. Default: $XDG_CACHE_HOME/maestrale or ~/.cache/maestrale.",
        group="Files",
        metavar="DIR",
    )

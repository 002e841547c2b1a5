"""What settings must be together: contradictions, and files that must be there."""

from __future__ import annotations

import re
from collections.abc import Mapping

from maestrale.config.settings import Settings, engines_of, flag
from maestrale.config.values import check_text
from maestrale.errors import SettingsError


def check_together(settings: Settings, sources: Mapping[str, str]) -> None:
    """What a field alone can't tell; `sources` says where each was given. Raises: SettingsError."""
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
    if settings.durable and not settings.store:
        raise SettingsError(
            f"{sources['durable']} and --no-store contradict each other: streams that go on after "
            "a restart are kept."
        )
    if settings.durable and settings.ledger_path is None:
        raise SettingsError(
            f"{sources['durable']} needs a file to keep requests in, and this user has no home "
            "folder: name one with --store-file."
        )
    if settings.api_nodes == "all":
        if settings.ray_address is None:
            raise SettingsError(f"{sources['api_nodes']} needs --ray-address too.")
        if settings.ray_join:
            raise SettingsError(
                f"{sources['api_nodes']} and {sources['ray_join']} contradict each other: the "
                "server that deploys the replicas starts the API processes of all nodes."
            )
    least = (settings.replica_range or (1, 1))[0]
    if settings.keep_alive_seconds is not None and settings.replica_range and least:
        raise SettingsError(
            f"{sources['keep_alive']} and Ray's replicas contradict each other: of these at least "
            f"{least} always run. A range from zero (--replicas 0-4) lets a model be unloaded."
        )
    if least == 0 and (settings.ray_join or settings.api_nodes == "all"):
        other = "ray_join" if settings.ray_join else "api_nodes"
        raise SettingsError(
            f"{sources['replicas']} and {sources[other]} contradict each other: only the server "
            "that deploys the replicas knows when a request asks for the first one."
        )
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

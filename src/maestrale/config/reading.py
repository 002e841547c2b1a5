"""How settings are read: flag > environment variable > maestrale.toml > default.

Who may reach the server is decided by the user's own files only, not by that of a folder that one
happens to stand in.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maestrale.config.paths import SETTINGS_FILE, default_cache_dir, default_settings_file
from maestrale.config.settings import (
    ENVIRONMENT_PREFIX,
    Settings,
    field_type,
    fields,
    flag,
    variable,
)
from maestrale.config.together import check_together
from maestrale.config.values import check_text, read_value
from maestrale.errors import SettingsError
from maestrale.text_files import decode_text

# Variables that are not settings of `serve`: tracebacks, another place for maestrale.toml, whether
# the launcher may install system packages, and where the launcher is.
OTHER_VARIABLES = ("MAESTRALE_DEBUG", "MAESTRALE_CONFIG", "MAESTRALE_APT", "MAESTRALE_LAUNCHER")
# What Kubernetes gives each pod for each Service of its namespace, as Docker's links once did.
# A Service named maestrale, or maestrale-api, has them under our own prefix.
_SERVICE_VARIABLE = re.compile(
    r"MAESTRALE_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_SERVICE_PORT = re.compile(r"MAESTRALE_(?:\w+_)?PORT")
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://\S+")


def load_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None
) -> Settings:
    """The settings of one start. `flags` are by field name; None stands for not given.

    `file` is a maestrale.toml that must exist; without it, MAESTRALE_CONFIG, then the user's own
    and the one in the working folder are taken where there is one (`settings_files`). A variable
    that is set but empty counts as not set.

    Raises: SettingsError that names the flag, variable or key, and what is allowed.
    """
    return read_settings(flags, environment, file)[0]


def read_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None
) -> tuple[Settings, dict[str, str]]:
    """As `load_settings`, with where each that was given came from. Raises: SettingsError."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, value, source in _given(flags, environment, file):
        values[name] = checked(name, value, source)
        sources[name] = source
    if "cache_dir" not in values:
        values["cache_dir"] = default_cache_dir(environment)
    settings = Settings(**values)
    check_together(settings, sources)
    return settings, sources


def checked(name: str, value: Any, source: str) -> Any:
    """The value of a field, as its type. Raises: SettingsError that names `source`."""
    rules = fields()[name].metadata["rules"]
    try:
        read = read_value(value, field_type(name), rules)
        if name != "model" and field_type(name) is not Path:  # those may be names of files
            check_text(read)
    except ValueError as error:
        # A key is never repeated, and no value is repeated at any length.
        given = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        came = "" if rules.get("secret") else f", but {given[:60]!r} was given"
        raise SettingsError(f"{source}: {error}{came}.") from error
    return read


def _given(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None
) -> Iterable[tuple[str, Any, str]]:
    """(field, raw value, where it was given), weakest source first."""
    named = file is not None or bool(environment.get("MAESTRALE_CONFIG"))
    for path in settings_files(environment, file):
        stranger = path == _WORKING and not named
        for name, value in read_toml(path)[0].items():
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
            raise SettingsError(f"{key} is no setting of maestrale{closest(key, known)}")
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


def read_toml(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What [serve] and each [[model]] of a file hold, as it is there. Raises: SettingsError."""
    import tomllib

    try:
        document = tomllib.loads(decode_text(path.read_bytes()))
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}.") from error
    except ValueError as error:  # tomllib's own, too
        raise SettingsError(f"{path} can't be read: {error}") from error
    models = document.get("model", [])
    if not isinstance(models, list) or not all(isinstance(each, dict) for each in models):
        raise SettingsError(
            f"{path}: 'model' is unknown here. The model to serve belongs under [serve]; of "
            "several each has a table [[model]], with its 'source'."
        )
    for table in document:
        if table not in ("serve", "model"):
            hint = " It belongs under [serve]." if table in fields() else ""
            raise SettingsError(
                f"{path}: {table!r} is unknown; the settings are in [serve], and of several "
                f"models in [[model]].{hint}"
            )
    serve = document.get("serve", {})
    if not isinstance(serve, dict):
        raise SettingsError(f"{path}: 'serve' must be a table: [serve].")
    for key in serve:
        if key not in fields():
            raise SettingsError(f"{path}: {key!r} is no setting of [serve]{closest(key, fields())}")
    return serve, models


def closest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that may have been meant."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else "."

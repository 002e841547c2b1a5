"""Which models a server has, each with settings of its own: MODELs, [[model]] tables, a folder.

What a table leaves out is as [serve], variables and flags say for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maestrale.config.reading import checked, closest, read_settings, read_toml, settings_files
from maestrale.config.sampling import BOUNDS
from maestrale.config.settings import Settings, engines_of, fields, flag
from maestrale.config.together import check_together
from maestrale.config.values import parse_range, read_value
from maestrale.errors import SettingsError

# What is of one model only; for several it stands in the tables.
OF_ONE = ("served_model_name", "revision", "chat_template")
# Settings that a table may have, beside the keys that are a table's own.
_GROUPS = ("Model", "Engine")
_OWN = ("name", "aliases", "source", "pinned")
GPU_SHARE = 0.9  # what vLLM takes by itself
_BESIDE = ("keep_alive", "replicas")  # of other groups
_RENAMED = {
    "model": "source",
    "served_model_name": "name",
    "context": "max_model_len",
    "kv_cache": "kv_cache_memory",
    "sampling": "override_generation_config",
}


def table_settings() -> tuple[str, ...]:
    """The settings that a [[model]] table may have of its own."""
    named = [name for name, each in fields().items() if each.metadata["group"] in _GROUPS]
    return (*(name for name in named if name not in ("model", "served_model_name")), *_BESIDE)


def load_models(
    names: Sequence[str],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Path | None = None,
) -> tuple[Settings, list[Settings]]:
    """The server's settings, and those of each model that is named, in order.

    `names` are those of the command line: a table's name, or any model's. Without them the tables
    are served, or the one model of the settings; none where there is only `models_dir`.

    Raises: SettingsError.
    """
    settings, sources = read_settings(flags, environment, file)
    tables = _tables(settings, sources, settings_files(environment, file))
    if not names and "model" in sources:
        if tables and sources["model"].startswith("model in "):
            raise SettingsError(
                f"{sources['model']} and the tables [[model]] contradict each other: give each "
                "model a table, or serve the one."
            )
        names = [settings.model]
    if names:
        models = [_named(name, settings, tables) for name in names]
    elif tables or settings.models_dir is not None:
        models = tables
    else:
        models = [settings]
    if models and settings.models_dir is None:
        _check_used(settings, sources, models)
    return settings, models


def check_several(settings: Settings, models: Sequence[Settings]) -> None:
    """Whether what was said for all can be meant for each of these. Raises: SettingsError."""
    if len(models) < 2:
        return
    for name in OF_ONE:
        given = getattr(settings, name)
        if given:
            shown = ", ".join(given) if isinstance(given, tuple) else given
            key = "name" if name == "served_model_name" else name
            raise SettingsError(
                f"{flag(name)} {shown} is for one model, and {len(models)} are to be served: say "
                f"which has it, by '{key}' in its table [[model]] of maestrale.toml."
            )
    # With --kv-cache-memory vLLM takes no share.
    sharing = [
        each
        for each in models
        if each.engine == "vllm" and each.replica_range is None and each.kv_cache_bytes is None
    ]
    share = sum(each.gpu_memory_utilization or GPU_SHARE for each in sharing)
    if len(sharing) > 1 and share > 1:
        raise SettingsError(
            f"The {len(sharing)} models on vLLM take {share:.0%} of their GPUs' memory together "
            f"({flag('gpu_memory_utilization')}, {GPU_SHARE} where nothing is said), and all are "
            "loaded at the start. Give each its share, or its kv_cache_memory, in its table "
            "[[model]]; or GPUs of its own, by 'replicas = 1', with which Ray hands them out."
        )


def in_folder(settings: Settings, found: Mapping[str, Path]) -> list[Settings]:
    """The settings of the models in a folder, by their names."""
    return [
        dataclasses.replace(settings, model=str(path), served_model_name=(name,))
        for name, path in found.items()
    ]


def _named(name: str, settings: Settings, tables: Sequence[Settings]) -> Settings:
    checked("model", name, "MODEL")
    for table in tables:
        if name in (table.served_model_name or (table.model,)):
            return table
    return dataclasses.replace(settings, model=name)


def _tables(
    settings: Settings, sources: Mapping[str, str], files: Sequence[Path]
) -> list[Settings]:
    """Those of the strongest file that has any."""
    for path in reversed(files):
        tables = read_toml(path)[1]
        if tables:
            return [
                _table(table, f"[[model]] {number} in {path}", settings, sources)
                for number, table in enumerate(tables, start=1)
            ]
    return []


def _table(
    table: Mapping[str, Any], place: str, settings: Settings, sources: Mapping[str, str]
) -> Settings:
    """One table over what holds for all. Raises: SettingsError."""
    known = table_settings()
    values: dict[str, Any] = {}
    came = dict(sources)
    for key, value in table.items():
        if key in _OWN:
            continue
        if key not in known:
            if key in _RENAMED:
                hint = f"; here it is called {_RENAMED[key]}."
            elif key == "draft":
                hint = ": tokens are drafted by looking up the prompt, without a model for it."
            elif key in BOUNDS:
                hint = f": give override_generation_config = {{ {key} = {value!r} }}."
            elif key in fields():
                hint = ": it is the server's, and belongs under [serve]."
            else:
                hint = closest(key, (*_OWN, *known))
            raise SettingsError(f"{place}: {key!r} is no setting of a model{hint}")
        came[key] = f"{key} of {place}"
        values[key] = checked(key, value, came[key])
    if "source" not in table:
        raise SettingsError(
            f"{place} has no 'source': a known name, a name on the hub, a .gguf file or a folder."
        )
    values["model"] = checked("model", table["source"], f"source of {place}")
    values |= _names(table, place, settings)
    values |= _not_meant(values, settings)
    own = dataclasses.replace(settings, **values)
    check_together(own, came)
    return own


def _not_meant(own: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """What was said for all and isn't meant for a model with these settings of its own."""
    plain = fields()
    found = {}
    if "engine" in own and own["engine"] != "auto":
        found = {
            name: plain[name].default
            for name in settings.engine_options
            if name not in own and own["engine"] not in engines_of(name)
        }
    if "replicas" in own and "keep_alive" not in own and parse_range(own["replicas"])[0]:
        found["keep_alive"] = None
    return found


def _check_used(settings: Settings, sources: Mapping[str, str], models: Sequence[Settings]) -> None:
    """Whether what was said for all is meant for any of them. Raises: SettingsError."""
    used = {name for model in models for name in model.engine_options}
    for name in settings.engine_options:
        if name not in used:
            raise SettingsError(
                f"{sources[name]} is for --engine {' or '.join(engines_of(name))}, and none of the "
                "models has that engine."
            )


def _names(table: Mapping[str, Any], place: str, settings: Settings) -> dict[str, Any]:
    """Its names, and whether it is pinned. Raises: SettingsError."""
    if "name" not in table:
        for key in ("aliases", "pinned"):
            if table.get(key):
                raise SettingsError(f"{place}: {key!r} needs a 'name' too.")
        return {}
    name = table["name"]
    if not isinstance(name, str) or "," in name:
        raise SettingsError(f"name of {place}: one text without commas is needed.")
    first = checked("served_model_name", name, f"name of {place}")
    aliases = checked("served_model_name", table.get("aliases", []), f"aliases of {place}")
    try:
        pinned = read_value(table.get("pinned", False), bool, {})
    except ValueError as error:
        raise SettingsError(f"pinned of {place}: {error}.") from error
    names = (*first, *(each for each in aliases if each not in first))
    more = (*settings.pinned, *first) if pinned else settings.pinned
    return {"served_model_name": names, "pinned": more}

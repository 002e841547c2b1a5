"""Which engines there are. A new engine is one file, one line here, and the contract tests."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from maestrale.engines.base import Engine, EngineConfig, Forecast
from maestrale.errors import SettingsError

ENGINES = {
    "cpu": "maestrale.engines.cpu.engine:CPUEngine",
    "vllm": "maestrale.engines.vllm.engine:VLLMEngine",
    "scripted": "maestrale.engines.scripted:ScriptedEngine",
}
DEFAULT = "cpu"
# Engines that have measured which settings suit the machine.
TUNERS = {"cpu": "maestrale.engines.cpu.tuning"}
# Engines that can tell what they will be before they start.
FORECASTS = {
    "cpu": "maestrale.engines.cpu.forecast",
    "scripted": "maestrale.engines.scripted.forecast",
}


def engine_name(setting: str) -> str:
    """The engine that a setting means: `auto` is the default one.

    Raises: SettingsError for a name that no engine has.
    """
    name = DEFAULT if setting == "auto" else setting
    if name not in ENGINES:
        known = ", ".join(["auto", *ENGINES])
        raise SettingsError(f"There is no engine named {setting!r}. Known ones: {known}.")
    return name


def build_engine(config: EngineConfig) -> Engine:
    """Make the engine that `config.engine` names; only its module is imported.

    Raises: SettingsError for an unknown name or an option that the engine doesn't know.
    """
    return import_engine(config.engine)(config)


def import_engine(setting: str) -> Callable[[EngineConfig], Engine]:
    """What makes the engine that a setting means, its module imported.

    Raises: SettingsError for an unknown name.
    """
    module, _, attribute = ENGINES[engine_name(setting)].partition(":")
    return cast(
        Callable[[EngineConfig], Engine], getattr(importlib.import_module(module), attribute)
    )


def tuned(config: EngineConfig, progress: Callable[[str, float | None], None]) -> EngineConfig:
    """`config` with what it leaves open chosen for this machine, where the engine can do that."""
    module = TUNERS.get(engine_name(config.engine))
    if module is None:
        return config
    return cast(EngineConfig, importlib.import_module(module).tuned(config, progress))


def forecast(config: EngineConfig, memory: int) -> Forecast | None:
    """What the engine will be with up to `memory` bytes; None where only starting it tells.

    Raises: ModelError, EngineError where it doesn't fit.
    """
    module = FORECASTS.get(engine_name(config.engine))
    if module is None:
        return None
    return cast(Forecast, importlib.import_module(module).forecast(config, memory))

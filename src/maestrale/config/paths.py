"""Where what is kept lies, each below a user's folder of the XDG rules; and where uv is.

For any environment, this process's or another's: platformdirs would ask this process's alone.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from maestrale.errors import SettingsError

SETTINGS_FILE = "maestrale.toml"


_BELOW_HOME = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
}


def xdg_folder(environment: Mapping[str, str], variable: str, otherwise: str = "") -> Path:
    """The folder that `variable` names, or its place below the home folder; a relative one is none.

    Raises: SettingsError when this user has no home folder at all; `otherwise` is what to do then.
    """
    folder = Path(environment.get(variable, ""))
    if folder.is_absolute():
        return folder
    home = environment.get("HOME", "")
    try:
        return (Path(home) if home else Path.home()) / _BELOW_HOME[variable]
    except RuntimeError as error:
        remedy = otherwise or f"set {variable}"
        raise SettingsError(f"This user has no home folder: {remedy}.") from error


def _folder(kind: str, environment: Mapping[str, str] | None, advice: str = "") -> Path:
    """Our folder of this kind; works without HOME. Raises: SettingsError without a home folder."""
    environment = os.environ if environment is None else environment
    return xdg_folder(environment, kind, advice) / "maestrale"


def default_cache_dir(environment: Mapping[str, str] | None = None) -> Path:
    """`$XDG_CACHE_HOME/maestrale`, or `~/.cache/maestrale`.

    Raises: SettingsError when this user has no home folder at all.
    """
    return _folder("XDG_CACHE_HOME", environment, "set --cache-dir")


def default_key_file(environment: Mapping[str, str] | None = None) -> Path:
    """`$XDG_CONFIG_HOME/maestrale/keys.json`, or `~/.config/maestrale/keys.json`.

    Raises: SettingsError when this user has no home folder at all.
    """
    return _folder("XDG_CONFIG_HOME", environment, "name the key file") / "keys.json"


def default_settings_file(environment: Mapping[str, str] | None = None) -> Path | None:
    """`$XDG_CONFIG_HOME/maestrale/maestrale.toml`, or below ~/.config; None without a home."""
    try:
        return default_key_file(environment).with_name(SETTINGS_FILE)
    except SettingsError:
        return None


def default_history_file(environment: Mapping[str, str] | None = None) -> Path | None:
    """`$XDG_STATE_HOME/maestrale/chat-history`, or below ~/.local/state; None without a home."""
    try:
        return default_machines_dir(environment).with_name("chat-history")
    except SettingsError:
        return None


def default_store_file(environment: Mapping[str, str] | None = None) -> Path | None:
    """`$XDG_STATE_HOME/maestrale/responses.db`, or below ~/.local/state; None without a home."""
    try:
        return default_machines_dir(environment).with_name("responses.db")
    except SettingsError:
        return None


def default_machines_dir(environment: Mapping[str, str] | None = None) -> Path:
    """`$XDG_STATE_HOME/maestrale/machines`: what `create` made, and SkyPilot's own records.

    Raises: SettingsError when this user has no home folder at all.
    """
    return _folder("XDG_STATE_HOME", environment) / "machines"


def default_data_dir(environment: Mapping[str, str] | None = None) -> Path:
    """`$XDG_DATA_HOME/maestrale`, or `~/.local/share/maestrale`.

    Raises: SettingsError when this user has no home folder at all.
    """
    return _folder("XDG_DATA_HOME", environment)


def find_uv() -> str | None:
    """The program uv: beside the interpreter, where an environment may bring it; on the path; or
    that which runs us (uvx names itself in UV), as it need be in neither.
    """
    beside = shutil.which("uv", path=str(Path(sys.executable).parent))
    return beside or shutil.which("uv") or shutil.which(os.environ.get("UV", ""))

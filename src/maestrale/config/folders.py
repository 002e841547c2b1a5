"""Where a user's files are by the XDG rules, for any environment: this process's or another's.

platformdirs would ask this process's environment alone; a service's or a test's is asked for too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maestrale.errors import SettingsError

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

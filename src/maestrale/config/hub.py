"""How the model hub is reached: its address, the token, the cache. Hugging Face's own variables.

HF_ENDPOINT, HF_TOKEN (and the older HUGGING_FACE_HUB_TOKEN), HF_TOKEN_PATH, HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE: what other tools of the hub obey works here too, and what they have
downloaded is found.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maestrale.config.paths import xdg_folder
from maestrale.errors import SettingsError

DEFAULT_ENDPOINT = "https://huggingface.co"
_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class HubSettings:
    """`endpoint` has no slash at its end. `token_source` says where the token was found.

    `cache` is the folder that Hugging Face's tools share (models--ORG--NAME/...). `offline`
    forbids every request.
    """

    cache: Path
    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = field(default=None, repr=False)
    token_source: str = ""
    offline: bool = False


def hub_settings(environment: Mapping[str, str] | None = None) -> HubSettings:
    """The settings that the environment holds; a variable that is set but empty counts as not set.

    Raises: SettingsError for an address that is none, or when there is no home folder.
    """
    environment = os.environ if environment is None else environment
    given = {name: value.strip() for name, value in environment.items() if value.strip()}
    endpoint = given.get("HF_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise SettingsError(
            f"HF_ENDPOINT: {endpoint[:80]!r} is no address; one looks like {DEFAULT_ENDPOINT}."
        )
    home = _home(given)
    token, source = _token(given, home)
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise SettingsError(f"{source} holds no token: a token is one word of ASCII characters.")
    offline = given.get("HF_HUB_OFFLINE") or given.get("TRANSFORMERS_OFFLINE") or ""
    cache = given.get("HF_HUB_CACHE") or given.get("HUGGINGFACE_HUB_CACHE")
    return HubSettings(
        cache=Path(cache).expanduser() if cache else home / "hub",
        endpoint=endpoint,
        token=token,
        token_source=source,
        offline=offline.lower() in _TRUE,
    )


def _home(given: Mapping[str, str]) -> Path:
    if "HF_HOME" in given:
        return Path(given["HF_HOME"]).expanduser()
    return xdg_folder(given, "XDG_CACHE_HOME", "set HF_HOME") / "huggingface"


def _token(given: Mapping[str, str], home: Path) -> tuple[str | None, str]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if name in given:
            return given[name], name
    # Where `hf auth login` leaves it.
    file = Path(given.get("HF_TOKEN_PATH", home / "token")).expanduser()
    try:
        token = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None, ""
    return (token, str(file)) if token else (None, "")

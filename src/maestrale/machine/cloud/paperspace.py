"""Paperspace's own API (https://api.paperspace.com/v1), for what SkyPilot can't ask there:
which template has Ubuntu 22.04 for a machine type, and letting go of a static address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from maestrale.bounded import MOST_BODY, UNCOMPRESSED, Oversized, Undecodable, read_body
from maestrale.errors import CloudRefused, CloudUnreachable, NoCredentials

URL = "https://api.paperspace.com/v1"
SECONDS = 30.0
# What `setup` knows; the gist's first.
SYSTEMS = ("Ubuntu 22.04", "Ubuntu 24.04")


def read_key(home: Path) -> str:
    """The API key, from where SkyPilot reads it too. Raises: NoCredentials."""
    path = home / ".paperspace" / "config.json"
    try:
        key = json.loads(path.read_text("utf-8"))["apiKey"]
    except FileNotFoundError as error:
        raise NoCredentials(
            f"There is no {path}. Make an API key in Paperspace's console and write "
            '{"apiKey": "..."} there.'
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoCredentials(f'{path} can\'t be read: it must hold {{"apiKey": "..."}}.') from error
    if not isinstance(key, str) or not key:
        raise NoCredentials(f"{path} has an empty apiKey.")
    return key


class Paperspace:
    """A client with the team's API key. Every method raises NoCredentials, CloudUnreachable or
    CloudRefused."""

    def __init__(self, key: str, url: str = URL) -> None:
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}", **UNCOMPRESSED},
            timeout=SECONDS,
        )

    def template(self, machine_type: str) -> str:
        """The id of the plain Ubuntu template that this machine type can start from."""
        templates = [
            one
            for one in self._pages("/os-templates")
            if any(
                kind.get("machineTypeLabel") == machine_type and kind.get("isAvailable")
                for kind in one.get("availableMachineTypes") or ()
            )
        ]
        for system in SYSTEMS:
            fitting = [one for one in templates if _is_plain(one, system)]
            if fitting:
                return str(max(fitting, key=lambda one: str(one.get("dtCreated")))["id"])
        raise CloudRefused(
            f"Paperspace lists no template of {' or '.join(SYSTEMS)} for the machine type "
            f"{machine_type}. Name one with --image ID (GET {URL}/os-templates lists them)."
        )

    def is_static(self, address: str) -> bool:
        """Whether the address is claimed by the team: it then stays when the machine is off."""
        return any(one.get("ip") == address for one in self._pages("/public-ips"))

    def release(self, address: str) -> bool:
        """Give a claimed address back; False when there is none. It costs until this is done."""
        if not self.is_static(address):
            return False
        self._ask("DELETE", f"/public-ips/{address}")
        return True

    def close(self) -> None:
        self._client.close()

    def _pages(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        after = ""
        while True:
            page = self._ask("GET", path, {"limit": "100", **({"after": after} if after else {})})
            items += page.get("items") or []
            after = str(page.get("nextPage") or "")
            if not page.get("hasMore") or not after:
                return items

    def _ask(self, method: str, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        try:
            with self._client.stream(method, path, params=query) as answer:
                told = read_body(answer, MOST_BODY, seconds=2 * SECONDS)
        except (httpx.HTTPError, Oversized, Undecodable) as error:
            raise CloudUnreachable(
                f"Paperspace's API doesn't answer ({type(error).__name__}: {error})."
            ) from error
        if answer.status_code in (401, 403):
            raise NoCredentials(
                "Paperspace doesn't accept the API key in ~/.paperspace/config.json."
            )
        try:
            body = json.loads(told) if told else {}
        except (ValueError, RecursionError):
            body = {}
        if not answer.is_success:
            said = body.get("message") if isinstance(body, dict) else ""
            raise CloudRefused(
                f"Paperspace answers {answer.status_code} to {method} {path}: "
                f"{said or 'no reason given'}."
            )
        return body if isinstance(body, dict) else {}


def _is_plain(template: dict[str, Any], system: str) -> bool:
    """The system without a desktop or a collection of frameworks on it."""
    name = f"{template.get('name')} {template.get('operatingSystemLabel')}"
    extras = ("desktop", "ml-in-a-box", "mlib", "mliab", "windows")
    return system.lower() in name.lower() and not any(one in name.lower() for one in extras)

"""Who may talk to the server: keys; without keys, only this machine and no foreign web page.

All of it is decided on the scope's path and headers, before any of the body is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.types import Scope

from maestrale.api.deployment import Deployment
from maestrale.api.operations.pages import is_shell
from maestrale.config.addresses import is_loopback
from maestrale.errors import (
    AuthenticationFailed,
    InvalidRequest,
    Location,
    PermissionDenied,
    quoted,
)
from maestrale.keys import Key, KeyStore

_NAME_AND_PORT = re.compile(r"(\[[^]]*\]|[^:]*)(?::[0-9]*)?")

OPEN_PATHS = frozenset({"/health", "/ping"})
WAYS = "'Authorization: Bearer KEY' or 'x-api-key: KEY'"


class Guard:
    """Checks one request at a time.

    With keys, a key is asked for. Without keys, `loopback` says that the server listens on
    this machine only: then Host must be a name of it (DNS rebinding), and in either case an
    Origin other than the server's own, or one of `allowed_hosts`, must be in `allowed_origins`.
    """

    def __init__(
        self,
        keys: KeyStore,
        *,
        loopback: bool,
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
    ) -> None:
        self._keys = keys
        self._loopback = loopback
        self._hosts = {host.lower() for host in allowed_hosts}
        self._origins = {origin.lower().rstrip("/") for origin in allowed_origins}

    def check(self, scope: Scope) -> Key | None:
        """Return the key used; None where none is asked for.

        Raises: AuthenticationFailed (401), PermissionDenied (403), InvalidRequest (400).
        """
        if scope["path"] in OPEN_PATHS:
            return None
        if self._keys.required:
            if is_shell(scope["method"], scope["path"]):
                return None
            return self._check_key(scope)
        self._check_browser(scope)
        return None

    def allows_origin(self, origin: str) -> bool:
        """Whether pages of this origin may call the API (CORS)."""
        return "*" in self._origins or origin.lower() in self._origins

    def _check_key(self, scope: Scope) -> Key:
        found = self._keys.authenticate(_key_of(scope))
        if found is None:
            raise AuthenticationFailed("This key is not known to the server.")
        return found

    def _check_browser(self, scope: Scope) -> None:
        hosts = _values(scope, b"host")
        if len(hosts) > 1:
            raise InvalidRequest("The request has more than one Host header.")
        # HTTP/1.0 needs none: a health check of a proxy, say. Every browser sends one.
        host = hosts[0].decode("latin-1").lower() if hosts else ""
        name = _without_port(host)
        ours = is_loopback(name) or name in self._hosts or host in self._hosts
        if self._loopback and hosts and not ours:
            raise PermissionDenied(
                f"Host {quoted(host)!r} is not a name of this machine; "
                "allow it with --allowed-hosts, or set a key with --api-key."
            )
        for value in _values(scope, b"origin"):
            origin = value.decode("latin-1")
            if not self._is_own(origin.lower(), host) and not self.allows_origin(origin):
                raise PermissionDenied(
                    f"Pages from {quoted(origin)!r} may not call this server; "
                    "allow them with --allowed-origins."
                )

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page of this origin came from this server.

        A proxy may have ended TLS, so that the page is https and what reaches us is not; and it
        may call us by another name than the operator told us it has.
        """
        scheme, _, authority = origin.partition("://")
        if scheme not in ("http", "https") or not host:
            return False
        port = ":443" if scheme == "https" else ":80"
        authority = authority.removesuffix(port)
        return (
            authority == host.removesuffix(port)
            or authority in self._hosts
            or _without_port(authority) in self._hosts
        )


def check_operator(owner: Key | None) -> None:
    """Whether the key that a request came with, if any is asked for, is an operator's.

    Raises: PermissionDenied.
    """
    if owner is not None and not owner.operator:
        raise PermissionDenied(
            f"The key {owner.name} may ask models, and not load or unload them: that takes an "
            "operator's key, from --api-key or 'maestrale keys add NAME --operator'."
        )


def may_ask(owner: Key | None, deployment: Deployment) -> bool:
    """Whether the key that a request came with, if any is asked for, may ask this model."""
    if owner is None or not owner.models:
        return True
    return not {deployment.id, *deployment.names}.isdisjoint(owner.models)


def check_model(owner: Key | None, deployment: Deployment) -> None:
    """As `may_ask`. Raises: PermissionDenied."""
    if owner is not None and not may_ask(owner, deployment):
        raise PermissionDenied(
            f"The key {owner.name} may not ask the model {deployment.name!r}; it may ask "
            f"{', '.join(owner.models)}.",
            at=Location("model"),
            code="model_not_allowed",
        )


def _key_of(scope: Scope) -> bytes:
    """The key as sent. Raises: AuthenticationFailed when there is none, or InvalidRequest."""
    authorization = _values(scope, b"authorization")
    others = [*_values(scope, b"x-api-key"), *_values(scope, b"api-key")]
    if len(authorization) > 1 or len(others) > 1:
        raise InvalidRequest("The request has more than one key.")
    if authorization:
        scheme, _, key = authorization[0].partition(b" ")
        if scheme.lower() != b"bearer":
            raise AuthenticationFailed(f"Send the key as {WAYS}.")
        return key.strip()
    if others:
        return others[0]
    raise AuthenticationFailed(f"This server asks for a key: send it as {WAYS}.")


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _without_port(host: str) -> str:
    """The name in a Host header; all of it where what follows the name is no port."""
    found = _NAME_AND_PORT.fullmatch(host)
    return found[1] if found else host

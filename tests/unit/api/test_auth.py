from __future__ import annotations

import pytest

from maestrale.api.auth import Guard, check_operator
from maestrale.errors import InvalidRequest, PermissionDenied
from maestrale.keys import KEY_PREFIX, Key, KeyStore, new_key


def test_keys_are_new_and_long() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith(KEY_PREFIX) and len(key) > 50 for key in keys)


def test_the_guard_keeps_no_key() -> None:
    secret = new_key()
    store = KeyStore([secret])
    guard = Guard(store, loopback=False)
    assert secret not in repr(vars(guard)) + repr(vars(store))
    key = guard.check({"method": "GET", "path": "/x", "headers": [(b"x-api-key", secret.encode())]})
    assert key is not None
    assert key.name not in secret
    assert guard.check({"path": "/health", "headers": []}) is None


def test_without_a_host_no_browser_asks() -> None:
    """HTTP/1.0 needs none, and health checks of proxies and old tools send none."""
    guard = Guard(KeyStore([]), loopback=True)
    scope = {"method": "GET", "path": "/v1/models"}
    assert guard.check({**scope, "headers": []}) is None
    for origin in (b"http://", b"https://evil.example", b"null"):
        with pytest.raises(PermissionDenied, match="may not call"):
            guard.check({**scope, "headers": [(b"origin", origin)]})
    with pytest.raises(PermissionDenied, match="not a name"):
        guard.check({**scope, "headers": [(b"host", b"evil.example")]})
    with pytest.raises(InvalidRequest, match="more than one"):
        guard.check({**scope, "headers": [(b"host", b"localhost"), (b"host", b"localhost")]})


def test_operators_are_those_of_the_settings_and_those_who_were_made_so() -> None:
    check_operator(None)  # no key is asked for: whoever reaches the server may
    secret = new_key()
    check_operator(KeyStore([secret]).authenticate(secret.encode()))
    check_operator(Key(name="carol", sha256="0" * 64, operator=True))
    with pytest.raises(PermissionDenied, match=r"The key bob .* --operator"):
        check_operator(Key(name="bob", sha256="0" * 64))

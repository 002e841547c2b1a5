from __future__ import annotations

import pytest

from maestrale.api.auth import Guard, is_loopback
from maestrale.keys import KEY_PREFIX, KeyStore, new_key


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "a.localhost", "127.0.0.1", "127.9.9.9",
                                  "::1", "[::1]", "localhost."])  # fmt: skip
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "evil", "localhost.evil", "127.0.0.1.evil", "::",
                                  "10.0.0.1", "xlocalhost"])  # fmt: skip
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


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

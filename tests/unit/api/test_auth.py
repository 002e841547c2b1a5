from __future__ import annotations

from maestrale.api.auth import Guard
from maestrale.keys import KEY_PREFIX, KeyStore, new_key


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

from __future__ import annotations

import socket
from typing import Any

import pytest

from maestrale.config.addresses import is_loopback, server_url
from maestrale.errors import SettingsError
from maestrale.serve.listening import listen

OURS = (
    *("localhost", "LocalHost", "localhost.", "a.localhost", "127.0.0.1", "127.9.9.9"),
    *("::1", "[::1]"),
)
NOT_OURS = (
    *("", "0.0.0.0", "::", "192.168.1.4", "10.0.0.1", "evil", "xlocalhost", "localhost.evil"),
    *("localhost.example.org", "127.0.0.1.evil"),
)


@pytest.mark.parametrize("host", OURS)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", NOT_OURS)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_name_of_ours_that_means_another_address_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a key, for its name was trusted, it would be open to whoever reaches the address."""

    def elsewhere(*given: Any, **named: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", elsewhere)
    with pytest.raises(SettingsError, match=r"a\.localhost.*192\.0\.2\.7"):
        listen("a.localhost", 0)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://h:8000", "http://h:8000"),
        ("https://h/v1", "https://h"),
        ("h/v1/", "http://h"),
        ("h/proxied/v1", "http://h/proxied"),
        (":8000", "http://127.0.0.1:8000"),
    ],
)
def test_what_people_paste_is_a_url(given: str, url: str) -> None:
    assert server_url(given) == url

from __future__ import annotations

import pytest

from maestrale.api.openai.dialect import OpenAI
from maestrale.api.rate import RateLimiter
from maestrale.errors import RateLimited
from maestrale.keys import Key


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(requests: int | None = None, tokens: int | None = None, name: str = "alice") -> Key:
    return Key(name=name, sha256=name * 8, requests_per_minute=requests, tokens_per_minute=tokens)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rates(clock: Clock) -> RateLimiter:
    return RateLimiter(clock=clock)


def test_no_key_and_no_limit_are_never_limited(rates: RateLimiter) -> None:
    for owner in (None, key()):
        for _ in range(10_000):
            rates.take_request(owner)
            rates.settle(owner, rates.reserve(owner, 1000), 1000)
        assert headers(rates, owner) == {}


def test_requests_a_minute(rates: RateLimiter, clock: Clock) -> None:
    alice = key(requests=6)
    for _ in range(6):
        rates.take_request(alice)
    with pytest.raises(RateLimited) as caught:
        rates.take_request(alice)
    assert caught.value.retry_after == 10
    assert caught.value.status == 429
    assert caught.value.code == "requests_per_minute_exceeded"
    clock.now += 10
    rates.take_request(alice)
    with pytest.raises(RateLimited):
        rates.take_request(alice)
    rates.take_request(key(requests=6, name="bob"))


def test_a_minute_of_rest_gives_one_minute_and_no_more(rates: RateLimiter, clock: Clock) -> None:
    alice = key(requests=6)
    rates.take_request(alice)
    clock.now += 3600
    for _ in range(6):
        rates.take_request(alice)
    with pytest.raises(RateLimited):
        rates.take_request(alice)


def test_what_an_answer_may_take_is_reserved_and_the_rest_given_back(
    rates: RateLimiter, clock: Clock
) -> None:
    alice = key(tokens=600)
    reserved = rates.reserve(alice, 500)
    assert reserved == 500
    assert headers(rates, alice)["x-ratelimit-remaining-tokens"] == "100"
    with pytest.raises(RateLimited) as caught:
        rates.reserve(alice, 200)
    assert caught.value.retry_after == 10
    assert "used or reserved" in str(caught.value)
    rates.settle(alice, reserved, 120)
    assert headers(rates, alice)["x-ratelimit-remaining-tokens"] == "480"
    assert rates.reserve(alice, 200) == 200


def test_requests_at_once_can_not_use_what_is_there_only_once(rates: RateLimiter) -> None:
    alice = key(tokens=2000)
    admitted = []
    for _ in range(60):
        try:
            admitted.append(rates.reserve(alice, 132))
        except RateLimited:
            continue
    assert len(admitted) == 15
    for reserved in admitted:
        rates.settle(alice, reserved, 132)
    assert headers(rates, alice)["x-ratelimit-remaining-tokens"] == "20"


def test_nothing_is_given_back_beyond_the_limit(rates: RateLimiter, clock: Clock) -> None:
    alice = key(tokens=600)
    reserved = rates.reserve(alice, 500)
    clock.now += 60
    rates.settle(alice, reserved, 0)
    assert headers(rates, alice)["x-ratelimit-remaining-tokens"] == "600"


def test_a_request_beyond_the_limit_waits_for_a_full_bucket_and_owes_the_rest(
    rates: RateLimiter, clock: Clock
) -> None:
    alice = key(tokens=600)
    reserved = rates.reserve(alice, 1200)
    assert reserved == 600
    with pytest.raises(RateLimited):
        rates.reserve(alice, 1)
    rates.settle(alice, reserved, 1200)
    with pytest.raises(RateLimited) as caught:
        rates.reserve(alice, 1200)
    assert caught.value.retry_after == 120
    clock.now += 119
    with pytest.raises(RateLimited):
        rates.reserve(alice, 1200)
    clock.now += 1
    assert rates.reserve(alice, 1200) == 600


def headers(rates: RateLimiter, owner: Key | None) -> dict[str, str]:
    return OpenAI().headers("req-1", rates.levels(owner))


def test_headers_are_openais(rates: RateLimiter, clock: Clock) -> None:
    alice = key(requests=60, tokens=6000)
    rates.take_request(alice)
    reserved = rates.reserve(alice, 50)
    assert headers(rates, alice) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5950",
        "x-ratelimit-reset-tokens": "500ms",
    }
    rates.settle(alice, reserved, 8550)
    assert headers(rates, alice)["x-ratelimit-reset-tokens"] == "1m25.5s"


def test_a_changed_limit_holds_at_once(rates: RateLimiter) -> None:
    rates.take_request(key(requests=1))
    with pytest.raises(RateLimited):
        rates.take_request(key(requests=1))
    rates.take_request(key(requests=2))

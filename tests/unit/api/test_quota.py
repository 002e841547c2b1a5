"""Limits a day and a month: whole days of UTC, never exceeded, exact after a restart."""

from __future__ import annotations

import datetime

import pytest

from maestrale.api.openai.dialect import OpenAI, span
from maestrale.api.quota import Quotas
from maestrale.errors import RateLimited
from maestrale.keys import Key
from maestrale.usage import UsageRow


class Clock:
    now = datetime.datetime(2030, 1, 31, 18, 0, tzinfo=datetime.UTC).timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(now=clock)


def key(**limits: int) -> Key:
    return Key(name="alice", sha256="aa" * 32, **limits)  # type: ignore[arg-type]


def used(day: str, requests: int = 1, tokens: int = 0, name: str = "alice") -> UsageRow:
    return UsageRow(day=day, key=name, requests=requests, completion_tokens=tokens)


def test_requests_a_day_until_midnight(quotas: Quotas, clock: Clock) -> None:
    alice = key(requests_per_day=2)
    for _ in range(2):
        quotas.check(alice, "requests", 1)
        quotas.add([used(quotas.today())])
    with pytest.raises(RateLimited) as caught:
        quotas.check(alice, "requests", 1)
    assert caught.value.code == "requests_per_day_exceeded"
    assert caught.value.retry_after == 6 * 3600
    assert "2 requests a day, and has used them" in str(caught.value)
    assert "from 2030-02-01T00:00:00Z" in str(caught.value)
    clock.now += 6 * 3600 - 1
    with pytest.raises(RateLimited):
        quotas.check(alice, "requests", 1)
    clock.now += 1
    quotas.check(alice, "requests", 1)


def test_a_month_ends_with_its_last_day(quotas: Quotas, clock: Clock) -> None:
    alice = key(tokens_per_month=100)
    quotas.add([used("2030-01-02", tokens=60), used("2030-01-31", tokens=30)])
    quotas.check(alice, "tokens", 10)
    with pytest.raises(RateLimited, match="90 are used or reserved") as caught:
        quotas.check(alice, "tokens", 11)
    assert caught.value.code == "tokens_per_month_exceeded"
    assert caught.value.retry_after == 6 * 3600
    clock.now += 6 * 3600
    quotas.check(alice, "tokens", 100)
    clock.now += 86400
    assert quotas.levels(alice)[0].full_in == 27 * 86400


def test_what_is_held_can_not_be_had_twice(quotas: Quotas) -> None:
    alice = key(tokens_per_day=100)
    quotas.check(alice, "tokens", 60)
    quotas.hold("alice", "tokens", quotas.today(), 60)
    with pytest.raises(RateLimited, match="when its requests in work have ended") as caught:
        quotas.check(alice, "tokens", 60)
    assert caught.value.retry_after == 2
    quotas.hold("alice", "tokens", quotas.today(), -60)
    quotas.check(alice, "tokens", 60)


def test_a_request_that_can_never_have_room(quotas: Quotas) -> None:
    with pytest.raises(RateLimited, match="101, more than all of them"):
        quotas.check(key(tokens_per_day=100), "tokens", 101)


def test_a_request_over_midnight_is_of_the_day_it_came(quotas: Quotas, clock: Clock) -> None:
    alice = key(tokens_per_day=100, tokens_per_month=150)
    day = quotas.today()
    quotas.hold("alice", "tokens", day, 100)
    clock.now += 6 * 3600
    quotas.check(alice, "tokens", 100)
    quotas.hold("alice", "tokens", day, -100)
    quotas.add([used(day, tokens=80)])
    assert [level.remaining for level in quotas.levels(alice)] == [100, 150]


def test_others_and_those_without_limits(quotas: Quotas) -> None:
    quotas.add([used("2030-01-31", 5, 500, name="bob")])
    quotas.check(key(requests_per_day=1, tokens_per_day=1), "tokens", 1)
    quotas.check(key(), "tokens", 10**9)
    assert quotas.levels(key()) == []


def test_a_limit_that_is_given_later_knows_the_whole_day(quotas: Quotas) -> None:
    quotas.add([used("2030-01-31", 5)])
    with pytest.raises(RateLimited):
        quotas.check(key(requests_per_day=5), "requests", 1)


def test_headers_tell_of_each_and_of_the_tightest(quotas: Quotas) -> None:
    quotas.add([used("2030-01-31", 5, 90)])
    alice = key(requests_per_day=10, tokens_per_day=100, tokens_per_month=95)
    assert OpenAI().headers("req-1", quotas.levels(alice)) == {
        "x-ratelimit-limit-requests-day": "10",
        "x-ratelimit-remaining-requests-day": "5",
        "x-ratelimit-reset-requests-day": "6h0m0s",
        "x-ratelimit-limit-tokens-day": "100",
        "x-ratelimit-remaining-tokens-day": "10",
        "x-ratelimit-reset-tokens-day": "6h0m0s",
        "x-ratelimit-limit-tokens-month": "95",
        "x-ratelimit-remaining-tokens-month": "5",
        "x-ratelimit-reset-tokens-month": "6h0m0s",
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "6h0m0s",
        "x-ratelimit-limit-tokens": "95",
        "x-ratelimit-remaining-tokens": "5",
        "x-ratelimit-reset-tokens": "6h0m0s",
    }


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.5, "500ms"), (12.5, "12.5s"), (60, "1m0s"), (3600, "1h0m0s"), (18725.25, "5h12m5.2s")],
)
def test_spans(seconds: float, told: str) -> None:
    assert span(seconds) == told

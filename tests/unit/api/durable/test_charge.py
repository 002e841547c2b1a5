"""What a run charges its key for, and what of it stays in the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from starlette.types import Scope

from maestrale.api.context import ALL, RequestContext, usage_of
from maestrale.api.dialects import DIALECTS
from maestrale.api.durable.run import Run
from maestrale.api.http.connections import ClientDisconnected
from maestrale.chat.answer import Answer, Timings, Usage
from maestrale.durable.ledger import Entry, Facts, Ledger

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db", most_bytes=1 << 20)


class _Answer:
    """One that has made so many tokens, of a prompt of seven."""

    def __init__(self, tokens: int, *, granted: bool = True) -> None:
        self.usage = Usage(7, tokens)
        self.timings = Timings()
        self.timings.granted = 1.0 if granted else None
        self.failure = None
        self.aborted = True


def entry(**fields: Any) -> Entry:
    facts = Facts(answer="x") if fields.pop("begun", True) else Facts()
    given = {"id": "stream-x", "owner": "-", "key": None, "digest": b"d", "path": "/p", **fields}
    return Entry(body=b"{}", facts=facts, **given)


def run_of(ledger: Ledger, answer: _Answer | None, asked: Entry) -> Run:
    context = RequestContext("r", DIALECTS.at("/"))
    context.answer = cast("Answer | None", answer)
    context.counts = 1
    return Run(ledger, asked, context, streams=True)


async def used(run: Run) -> tuple[int, int, int]:
    """What is counted of it now: requests, tokens of the prompt and of the answer."""
    run.context.counted = await run.charge()
    row = usage_of(run.context)
    return row.requests, row.prompt_tokens, row.completion_tokens


async def test_what_one_run_was_charged_for_another_is_not(ledger: Ledger) -> None:
    await ledger.add(entry())
    assert await used(run_of(ledger, _Answer(3), entry())) == (1, 7, 3)
    assert await used(run_of(ledger, _Answer(5), entry())) == (0, 0, 2)
    assert await used(run_of(ledger, _Answer(4), entry())) == (0, 0, 0)
    assert await used(run_of(ledger, _Answer(9), entry())) == (0, 0, 4)


async def test_a_run_that_never_had_its_turn(ledger: Ledger) -> None:
    await ledger.add(entry())
    for answer in (None, _Answer(0, granted=False)):
        assert await used(run_of(ledger, answer, entry())) == (0, 0, 0)
        assert await used(run_of(ledger, answer, entry(begun=False))) == (1, 0, 0)
    assert await used(run_of(ledger, _Answer(2), entry())) == (1, 7, 2)


async def test_what_is_not_in_the_ledger_is_charged_as_it_is(ledger: Ledger) -> None:
    for _ in range(2):
        assert await used(run_of(ledger, _Answer(3), entry(begun=False))) == (1, 7, 3)


async def test_a_ledger_that_cannot_be_used_charges_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    broken = Ledger(tmp_path / "ledger.db", most_bytes=1 << 20)
    assert await used(run_of(broken, _Answer(3), entry())) == (1, 7, 3)


async def test_one_that_is_free_is(ledger: Ledger) -> None:
    run = run_of(ledger, _Answer(3), entry())
    run.context.counted = ALL
    assert await used(run) == (0, 0, 0)


async def test_who_leaves_before_the_first_event_of_a_rest_can_come_again(ledger: Ledger) -> None:
    async def leave(scope: Scope, run: Run) -> None:
        raise ClientDisconnected

    await ledger.add(entry())
    run = run_of(ledger, _Answer(3), entry())
    await run.make({"type": "http"}, leave)
    assert isinstance(run.error, ClientDisconnected)
    assert await ledger.find("stream-x", "-") is not None

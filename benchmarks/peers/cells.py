"""The measurements over HTTP: each gives numbers by name, the same for every server."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from benchmarks.peers import questions
from maestrale.bench.client import Client, Exchange
from maestrale.bench.statistics import latency, percentile

Numbers = dict[str, float]
Message = dict[str, Any]


class Failed(Exception):
    """A request of a cell failed; the text says how."""


class Asker:
    """Asks one server, always at temperature 0."""

    def __init__(self, client: Client, model: str) -> None:
        self.client = client
        self._model = model

    async def ask(self, messages: list[Message], tokens: int, **fields: Any) -> Exchange:
        """Raises: Failed."""
        body = {
            "model": self._model,
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        found = await self.client.ask(msgspec.json.encode(body), keep_text=True)
        if found.error is not None:
            raise Failed(found.error)
        return found

    async def run_on(self, messages: list[Message], tokens: int) -> Exchange:
        """An answer of exactly `tokens` tokens."""
        return await self.ask(messages, tokens, ignore_eos=True)


async def streams(asker: Asker, count: int, tokens: int) -> Numbers:
    """Tokens/s of `count` answers begun at once: from the first request to the last token."""
    total, seconds = 0, 0.0
    for asked in questions.batches(count):
        begun = time.perf_counter()
        answers = await asyncio.gather(*(asker.run_on(messages, tokens) for messages in asked))
        seconds += max(answer.ended for answer in answers) - begun
        total += _tokens(answers)
    return {f"tokens_per_second_{count}": total / seconds}


async def article(asker: Asker, reader: int) -> Numbers:
    """Time to first token of an article, and of a follow-up asked once the answer was read."""
    messages = questions.long(reader)
    first = await asker.ask(messages, 16)
    await asyncio.sleep(questions.READING_SECONDS)
    messages += [questions.assistant(first.text), questions.user(questions.FOLLOW_UP)]
    second = await asker.ask(messages, 16)
    prompt = first.usage.prompt_tokens if first.usage else 0
    return {
        "article_tokens": prompt,
        "article_ttft": _ttft(first),
        "follow_up_ttft": _ttft(second),
        "follow_up_ratio": _ttft(second) / _ttft(first),
        "prefill_tokens_per_second": prompt / _ttft(first),
    }


async def json(asker: Asker, repeats: int) -> Numbers:
    """Time per token of JSON by schema against free text after the same prompt."""
    messages, response_format = questions.structured()
    constrained, free = [], []
    first = await asker.ask(messages, 160, response_format=response_format)
    for _ in range(repeats):
        answer = await asker.ask(messages, 160, response_format=response_format)
        tokens = answer.usage.completion_tokens if answer.usage else 0
        constrained.append(_tpot(answer))
        free.append(_tpot(await asker.run_on(messages, max(2, tokens))))
    return {
        "json_tpot": statistics.median(constrained),
        "free_tpot": statistics.median(free),
        "json_ratio": statistics.median(constrained) / statistics.median(free),
        "json_first_ttft": _ttft(first),
    }


async def fairness(asker: Asker, reader: int, running: int = 4, articles: int = 4) -> Numbers:
    """Pauses of running streams while long prompts arrive."""

    async def disturb() -> None:
        prompts = [questions.long(reader + number) for number in range(articles)]
        await asyncio.gather(*(asker.ask(messages, 2) for messages in prompts))

    calm, pauses = await _pauses(asker, running, disturb)
    return {
        "prefill_pause_p99": percentile(pauses, 99),
        "prefill_pause_median": percentile(pauses, 50),
        "prefill_pause_max": pauses[-1],
        "calm_pause_median": percentile(calm, 50),
        "fairness": percentile(pauses, 99) / percentile(pauses, 50),
    }


async def schema_stall(asker: Asker, number: int) -> Numbers:
    """The longest pause of running streams while a large new schema is compiled.

    Beside it, the longest while the same prompt runs without a schema: what any request costs.
    """

    async def ask(topic: str, **fields: Any) -> None:
        await asker.ask([questions.user(f"Give me {topic}.")], 8, **fields)

    response_format = questions.other_schema(number)
    _, plain, compiled = await _pauses(
        asker,
        4,
        lambda: ask("letters"),
        lambda: ask("numbers", response_format=response_format),
    )
    return {
        "schema_pause_max": compiled[-1],
        "plain_pause_max": plain[-1],
        "schema_stall": compiled[-1] / plain[-1],
    }


async def _pauses(asker: Asker, running: int, *works: Callable[[], Any]) -> list[list[float]]:
    """Pauses of streams that run on, ascending: before, and during each of `works` in turn."""
    answers: list[Exchange] = []
    over = asyncio.Event()

    async def keep_asking(number: int) -> None:
        for series in range(100):
            asked = questions.short(running, series=200 + series)[number]
            answers.append(await asker.run_on(asked, 96))
            if over.is_set():
                return

    streams_running = [asyncio.create_task(keep_asking(number)) for number in range(running)]
    # A first answer each is what the calm is measured on.
    while len(answers) < running and not any(map(asyncio.Task.done, streams_running)):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    marks = [0.0]
    try:
        for work in works:
            await asyncio.sleep(0.3)
            marks.append(time.perf_counter())
            await work()
    finally:
        marks.append(time.perf_counter())
        over.set()
        results = await asyncio.gather(*streams_running, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    pauses = [sorted(_gaps(answers, *window)) for window in itertools.pairwise(marks)]
    if not all(pauses):
        raise Failed("no pause to measure: the running streams gave nothing meanwhile")
    return pauses


def _gaps(answers: Iterable[Exchange], begin: float, end: float) -> Iterable[float]:
    """Pauses between arrivals that touch the time from `begin` to `end`."""
    for answer in answers:
        for earlier, later in zip(answer.times, answer.times[1:], strict=False):
            if earlier < end and later > begin and (begin or later <= end):
                yield later - earlier


def _tokens(answers: Iterable[Exchange]) -> int:
    return sum(answer.usage.completion_tokens for answer in answers if answer.usage)


def _ttft(answer: Exchange) -> float:
    found = latency(answer)
    if found is None:
        raise Failed("no token")
    return found.ttft


def _tpot(answer: Exchange) -> float:
    found = latency(answer)
    if found is None or found.tpot is None:
        raise Failed("an answer of one token has no time per token")
    return found.tpot

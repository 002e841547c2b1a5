"""What every engine promises (engines/base.py), asked of all in the registry and of replicas."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

import jsonschema
import pytest

from maestrale.engines.base import Constraint, GenerationRequest, Sampling
from maestrale.errors import ConstraintError, EngineDied, EngineError, Unavailable
from maestrale.models.vocabulary import Vocabulary
from running_engine import Answer, RunningEngine, collect

GREEDY = Sampling(temperature=0.0)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"enum": [1, 2]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
Make = Callable[..., GenerationRequest]


@pytest.fixture
def make(running: RunningEngine) -> Make:
    """Makes requests; the same arguments give the same request."""

    def made(text_seed: int = 0, length: int = 20, **fields: Any) -> GenerationRequest:
        chance = random.Random(text_seed)
        most = running.info.vocab_size
        least = min(100, most // 2)
        defaults: dict[str, Any] = {
            "request_id": f"r{text_seed}",
            "prompt": tuple(chance.randrange(least, most - 10) for _ in range(length)),
            "max_tokens": 12,
            "seed": text_seed,
            "sampling": Sampling(temperature=0.8),
        }
        return GenerationRequest(**{**defaults, **fields})

    return made


def needs(running: RunningEngine, feature: str) -> None:
    if feature not in running.info.features:
        pytest.skip(f"{running.info.engine} has no {feature}")


def only(running: RunningEngine, request: GenerationRequest) -> Answer:
    return running.run(request)[0]


def test_describes_itself(running: RunningEngine) -> None:
    info = running.info
    assert info.engine == running.config.engine
    assert info.fingerprint
    assert 0 < info.max_model_len <= 1024
    assert info.kv_capacity_tokens >= info.max_model_len
    assert running.do(running.engine.health()).state == "ready"


def test_max_tokens_bounds_and_counts(running: RunningEngine, make: Make) -> None:
    before = running.settled()
    answer = only(running, make(1, max_tokens=5))
    assert (len(answer.tokens), answer.finish_reason) == (5, "length")
    after = running.settled()
    assert after.generation_tokens - before.generation_tokens == 5
    assert after.prompt_tokens - before.prompt_tokens == 20
    assert after.steps > before.steps


def test_the_same_request_gives_the_same_tokens_and_another_seed_others(
    running: RunningEngine, make: Make
) -> None:
    first = only(running, make(2))
    assert only(running, make(2)).tokens == first.tokens
    others = running.run(*(make(2, seed=100 + seed) for seed in range(4)))
    assert any(answer.tokens != first.tokens for answer in others)


@pytest.mark.slow
def test_the_same_tokens_alone_and_among_others(running: RunningEngine, make: Make) -> None:
    """At a high temperature on random prompts, where the least difference in a logit shows."""
    needs(running, "deterministic")
    chance = random.Random(3)
    requests = []
    for index, length in enumerate([1, 2, 31, 32, 33, 34, 63, 65, 66, 79, 81, 150]):
        sampling = chance.choice([GREEDY, Sampling(), Sampling(temperature=1.5, top_p=0.95)])
        constraint = Constraint("json_schema", json.dumps(SCHEMA)) if index % 4 == 3 else None
        fields = {"sampling": sampling, "constraint": constraint, "max_tokens": 30, "logprobs": 2}
        requests.append(make(index, length, **fields))
    alone = [only(running, request) for request in requests]
    for _ in range(2):
        chance.shuffle(requests)
        for request, answer in zip(requests, running.run(*requests), strict=True):
            same = next(one for one in alone if one.request == request)
            assert (answer.tokens, answer.logprobs) == (same.tokens, same.logprobs)


def test_a_stop_id_ends_the_answer_and_is_part_of_it(running: RunningEngine, make: Make) -> None:
    whole = only(running, make(4, sampling=GREEDY)).tokens
    stop = whole[5]
    answer = only(running, make(4, sampling=GREEDY, stop_token_ids=(stop,)))
    if running.info.engine == "scripted":  # it chooses its stops itself
        assert answer.finish_reason in ("stop", "length")
        return
    assert answer.tokens == whole[: whole.index(stop) + 1]
    assert answer.finish_reason == "stop"


def test_min_tokens_holds_a_stop_back(running: RunningEngine, make: Make) -> None:
    every = tuple(range(running.info.vocab_size - 1))
    answer = only(running, make(5, min_tokens=6, stop_token_ids=every, sampling=Sampling()))
    if running.info.engine == "scripted":
        assert len(answer.tokens) >= 6
        return
    assert len(answer.tokens) == 7
    assert answer.finish_reason == "stop"
    assert set(answer.tokens[:6]) == {running.info.vocab_size - 1}


def test_forced_tokens_come_first_and_the_rest_follows_as_if_drawn(
    running: RunningEngine, make: Make
) -> None:
    whole = only(running, make(6)).tokens
    again = only(running, make(6, forced=tuple(whole[:7])))
    assert again.tokens == whole
    other = tuple(reversed(whole[:3]))
    assert only(running, make(6, forced=other)).tokens[:3] == list(other)


def test_forced_tokens_advance_constraint_and_penalties(running: RunningEngine, make: Make) -> None:
    """As when JSON goes on after a crash in its middle."""
    needs(running, "json_schema")
    fields: dict[str, Any] = {
        "constraint": Constraint("json_schema", json.dumps(SCHEMA)),
        "sampling": Sampling(temperature=0.9, frequency_penalty=0.7, repetition_penalty=1.2),
        "max_tokens": 60,
    }
    whole = only(running, make(61, **fields))
    again = only(running, make(61, **fields, forced=tuple(whole.tokens[:8])))
    assert (again.tokens, again.finish_reason) == (whole.tokens, whole.finish_reason)


def test_logprobs_have_the_shape_that_was_asked_for(running: RunningEngine, make: Make) -> None:
    needs(running, "top_logprobs")
    assert only(running, make(7)).logprobs == []
    for top in (0, 3, 20):
        answer = only(running, make(7, logprobs=top, sampling=GREEDY))
        assert [entry.token_id for entry in answer.logprobs] == answer.tokens
        for entry in answer.logprobs:
            assert entry.logprob <= 0
            assert len(entry.top) == top
            values = [value for _, value in entry.top]
            assert values == sorted(values, reverse=True)
            if top:
                assert entry.top[0] == (entry.token_id, entry.logprob)


def test_logit_bias_bans_and_forces(running: RunningEngine, make: Make) -> None:
    needs(running, "logit_bias")
    first = only(running, make(8, sampling=GREEDY)).tokens[0]
    ban = Sampling(temperature=0.0, logit_bias=((first, -100.0),))
    assert first not in only(running, make(8, sampling=ban)).tokens
    force = Sampling(temperature=0.0, logit_bias=((77, 100.0),))
    assert set(only(running, make(8, sampling=force)).tokens) == {77}


def test_a_json_schema_binds(running: RunningEngine, make: Make, vocabulary: Vocabulary) -> None:
    needs(running, "json_schema")
    constraint = Constraint("json_schema", json.dumps(SCHEMA))
    requests = [make(seed, constraint=constraint, max_tokens=100) for seed in range(6)]
    for answer in running.run(*requests):
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(spelled(answer, vocabulary)), SCHEMA)


def test_a_regex_binds(running: RunningEngine, make: Make, vocabulary: Vocabulary) -> None:
    needs(running, "regex")
    pattern = "(north|south)-[a-f]{3}\\d"
    constraint = Constraint("regex", pattern)
    requests = [make(90 + seed, constraint=constraint, max_tokens=60) for seed in range(4)]
    for answer in running.run(*requests):
        assert answer.finish_reason == "stop"
        assert re.fullmatch(pattern, spelled(answer, vocabulary))


def test_a_grammar_binds_with_control_tokens_schemas_and_constraints_within(
    running: RunningEngine, make: Make, vocabulary: Vocabulary
) -> None:
    """As of a tool call behind a thought: a mark by its id, a choice, JSON, a regex."""
    needs(running, "grammar")
    eos = vocabulary.eos_token_ids
    marks = [token for token in vocabulary.control_ids.values() if token not in eos]
    mark = f"<[{marks[0]}]> " if marks else ""
    constraint = Constraint(
        "grammar",
        f'start: {mark}("add" | "sub") arguments " " note\n',
        schemas=(("arguments", json.dumps(SCHEMA)),),
        nested=(("note", Constraint("regex", "[xyz]{2}")),),
    )
    requests = [make(95 + seed, constraint=constraint, max_tokens=120) for seed in range(4)]
    for answer in running.run(*requests):
        assert answer.finish_reason == "stop"
        if marks:
            assert answer.tokens[0] == marks[0]
            assert not {*marks} & {*answer.tokens[1:]}
        found = re.fullmatch(r"(add|sub)(\{.*\}) [xyz]{2}", spelled(answer, vocabulary), re.DOTALL)
        assert found is not None
        jsonschema.validate(json.loads(found[2]), SCHEMA)


def spelled(answer: Answer, vocabulary: Vocabulary) -> str:
    return b"".join(vocabulary.token_bytes[token] for token in answer.tokens).decode()


def test_a_bad_constraint_fails_only_its_own_request(running: RunningEngine, make: Make) -> None:
    needs(running, "json_schema")

    async def both() -> tuple[Any, Any]:
        bad = make(9, constraint=Constraint("json_schema", '{"pattern": "(["}'))
        good = collect(running.engine, make(9))
        return tuple(  # type: ignore[return-value]
            await asyncio.gather(good, collect(running.engine, bad), return_exceptions=True)
        )

    good, bad = running.do(both())
    assert isinstance(bad, ConstraintError)
    assert len(good.tokens) > 0
    assert running.do(running.engine.health()).state == "ready"


def test_leaving_the_iterator_frees_everything(running: RunningEngine, make: Make) -> None:
    async def leave_after(request: GenerationRequest, deltas: int) -> None:
        async with aclosing(running.engine.generate(request)) as stream:  # type: ignore[type-var]
            async for _ in stream:
                deltas -= 1
                if deltas <= 0:
                    return

    async def leave_all() -> None:
        tasks = [leave_after(make(seed, 40, max_tokens=400), 1 + seed % 3) for seed in range(8)]
        await asyncio.gather(*tasks)

    running.do(leave_all())
    stats = running.settled()
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (0, 0, 0.0)


def test_cancelling_before_the_first_token_frees_everything(
    running: RunningEngine, make: Make
) -> None:
    async def cancel() -> None:
        requests = [make(seed, 200, max_tokens=400) for seed in range(6)]
        tasks = [asyncio.create_task(collect(running.engine, request)) for request in requests]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)

    running.do(cancel())
    stats = running.settled()
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (0, 0, 0.0)


def test_a_prompt_that_does_not_fit_is_refused(running: RunningEngine, make: Make) -> None:
    longest = running.info.max_model_len
    with pytest.raises(EngineError):
        only(running, make(10, longest + 1, max_tokens=1))
    answer = only(running, make(10, longest - 1, max_tokens=1))
    assert len(answer.tokens) == 1


def test_a_prompt_seen_before_is_taken_from_the_cache(running: RunningEngine, make: Make) -> None:
    needs(running, "prefix_cache")
    cold = only(running, make(211, 100, sampling=GREEDY))
    warm = only(running, make(211, 100, sampling=GREEDY))
    assert cold.cached_tokens == 0
    assert 96 <= warm.cached_tokens < 100
    assert warm.tokens == cold.tokens
    hits = running.settled().prefix_cache_hits
    many = running.run(*(make(212, 70, seed=seed) for seed in range(8)))
    cached = sorted(answer.cached_tokens for answer in many)
    assert cached[0] == 0
    assert all(64 <= count < 70 for count in cached[1:])
    assert running.settled().prefix_cache_hits == hits + sum(cached)


def test_the_prompts_own_tokens_have_logprobs(running: RunningEngine, make: Make) -> None:
    needs(running, "top_logprobs")
    plain = make(311, 100, sampling=GREEDY)
    warm = only(running, plain)
    assert warm.prompt_logprobs is None
    scored = only(running, make(311, 100, sampling=GREEDY, prompt_logprobs=3))
    assert scored.tokens == warm.tokens
    assert scored.prompt_logprobs is not None
    assert [entry.token_id for entry in scored.prompt_logprobs] == list(plain.prompt[1:])
    for entry in scored.prompt_logprobs:
        assert entry.logprob <= 0
        assert len(entry.top) == 3
        assert entry.top[0][1] == max(value for _, value in entry.top)
        assert entry.logprob <= entry.top[0][1] + 1e-4
    # At any load, and whatever the cache holds: the same numbers.
    many = running.run(
        *(make(311, 100, sampling=GREEDY, prompt_logprobs=3, seed=seed) for seed in range(3)),
        *(make(312 + seed, 40) for seed in range(3)),
    )
    for answer in many[:3]:
        assert answer.prompt_logprobs is not None
        pairs = zip(answer.prompt_logprobs, scored.prompt_logprobs, strict=True)
        assert all(abs(one.logprob - other.logprob) < 0.1 for one, other in pairs)
    if "deterministic" in running.info.features:
        assert [answer.prompt_logprobs for answer in many[:3]] == [scored.prompt_logprobs] * 3


def test_the_logprob_of_a_token_is_that_of_the_same_one_generated(
    running: RunningEngine, make: Make
) -> None:
    """What the model wrote, given back as a prompt, is as likely as when it was written."""
    needs(running, "top_logprobs")
    if running.info.engine == "scripted":
        pytest.skip("its tokens are hashes of the whole prompt")
    asked = make(321, 30, sampling=GREEDY, max_tokens=8, logprobs=0)
    written = only(running, asked)
    again = only(
        running, make(prompt=(*asked.prompt, *written.tokens), max_tokens=1, prompt_logprobs=0)
    )
    assert again.prompt_logprobs is not None
    tail = again.prompt_logprobs[-len(written.tokens) :]
    for one, other in zip(tail, written.logprobs, strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=0.1)


def test_a_prompt_alone_can_be_asked_about(running: RunningEngine, make: Make) -> None:
    needs(running, "top_logprobs")
    before = running.settled()
    answer = only(running, make(331, 70, max_tokens=0, prompt_logprobs=0))
    assert (answer.tokens, answer.finish_reason) == ([], "length")
    assert answer.prompt_logprobs is not None
    assert len(answer.prompt_logprobs) == 69
    if running.info.engine != "scripted":
        with pytest.raises(EngineError):
            only(running, make(332, max_tokens=0))
    assert running.settled().generation_tokens == before.generation_tokens


class TestClosing:
    """On an engine of its own."""

    @pytest.fixture
    def own(self, kind: str, start: Callable[[], RunningEngine]) -> RunningEngine:
        if kind == "replicas of cpu":
            pytest.skip("replicas of the scripted engine show it, and start sooner")
        return start()

    @pytest.mark.slow
    def test_close_lets_running_requests_finish_and_refuses_new_ones(
        self, own: RunningEngine, make: Make
    ) -> None:
        async def close_during() -> tuple[Answer, Any]:
            begun = asyncio.Event()

            async def note(_: object) -> None:
                begun.set()

            task = asyncio.create_task(collect(own.engine, make(1, max_tokens=20), note))
            await begun.wait()
            closing = asyncio.create_task(own.engine.close(60))
            await asyncio.sleep(0)
            late = collect(own.engine, make(2))
            late_result = await asyncio.gather(late, return_exceptions=True)
            await closing
            return await task, late_result[0]

        answer, late = own.do(close_during())
        own.stop()
        assert len(answer.tokens) > 0
        assert answer.finish_reason is not None
        assert isinstance(late, EngineDied | Unavailable) or own.config.engine == "scripted"

    @pytest.mark.slow
    def test_close_without_grace_ends_requests_with_an_error(
        self, own: RunningEngine, make: Make
    ) -> None:
        async def close_during() -> Any:
            task = asyncio.create_task(collect(own.engine, make(1, max_tokens=900, min_tokens=900)))
            await asyncio.sleep(0.1)
            await own.engine.close(0)
            return (await asyncio.gather(task, return_exceptions=True))[0]

        outcome = own.do(close_during())
        own.stop()
        assert isinstance(outcome, EngineDied | Unavailable | Answer)
        if own.config.engine != "scripted":
            assert isinstance(outcome, EngineDied | Unavailable)

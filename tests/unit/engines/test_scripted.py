"""The scripted engine keeps the Engine protocol, and does what its script says."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest
from msgspec.structs import replace

from maestrale.engines.base import Constraint, EngineConfig, GenerationRequest, Sampling, TokenDelta
from maestrale.engines.mailbox import Mailbox, merge
from maestrale.engines.registry import build_engine, engine_name
from maestrale.engines.scripted import ScriptedEngine
from maestrale.errors import EngineDied, EngineError, SettingsError
from maestrale.models.vocabulary import BYTE_EOS


def request(**fields: object) -> GenerationRequest:
    values = {"request_id": "r", "prompt": (1, 2, 3), "max_tokens": 50, "seed": 1, **fields}
    return GenerationRequest(**values)  # type: ignore[arg-type]


def answers(*requests: GenerationRequest, **options: str) -> list[TokenDelta]:
    """The requests run together on a fresh engine; how long each waited is left out."""

    async def read(engine: ScriptedEngine, what: GenerationRequest) -> TokenDelta:
        deltas = [delta async for delta in engine.generate(what)]
        return replace(merge(deltas), waited=0.0)

    async def main() -> list[TokenDelta]:
        engine = ScriptedEngine(EngineConfig(engine="scripted", model_dir="", options=options))
        await engine.start()
        try:
            return await asyncio.gather(*(read(engine, what) for what in requests))
        finally:
            await engine.close()

    return asyncio.run(main())


def answer(what: GenerationRequest, **options: str) -> TokenDelta:
    return answers(what, **options)[0]


def test_tokens_depend_on_the_request_alone() -> None:
    alone = answer(request())
    others = [request(prompt=(n,)) for n in range(5, 20)]
    assert answers(*others, request(request_id="other name"))[-1] == alone
    assert answer(request(seed=2)) != alone
    assert answer(request(prompt=(1, 2, 4))) != alone


def test_greedy_ignores_the_seed() -> None:
    greedy = Sampling(temperature=0.0)
    one, two = answers(request(sampling=greedy), request(sampling=greedy, seed=9))
    assert one == two


def test_it_ends_by_itself_only_where_a_stop_id_lets_it() -> None:
    stopped, full = answers(
        request(max_tokens=400, stop_token_ids=(BYTE_EOS,)), request(max_tokens=400)
    )
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids.index(BYTE_EOS) == len(stopped.token_ids) - 1 < 100
    assert (full.finish_reason, len(full.token_ids)) == ("length", 400)


def test_min_tokens_puts_off_the_end() -> None:
    what = request(max_tokens=400, stop_token_ids=(BYTE_EOS,), min_tokens=200)
    assert len(answer(what).token_ids) == 201


def test_it_says_its_text() -> None:
    told = answer(request(stop_token_ids=(BYTE_EOS,)), text="Hello é!")
    assert bytes(told.token_ids[:-1]).decode() == "Hello é!"
    assert answer(request(max_tokens=3), tokens="[65, 66]").token_ids == (65, 66, 65)


def test_forced_tokens_come_first_and_count() -> None:
    free = answer(request())
    forced = answer(request(forced=(90, 91)))
    assert forced.token_ids[:2] == (90, 91)
    assert forced.token_ids[2:] == free.token_ids[2:]


def test_logprobs_come_with_each_token() -> None:
    told = answer(request(logprobs=3))
    assert told.logprobs is not None
    assert [entry.token_id for entry in told.logprobs] == list(told.token_ids)
    for entry in told.logprobs:
        assert len(entry.top) == 3
        ranked = [logprob for _, logprob in entry.top]
        assert ranked == sorted(ranked, reverse=True)
    assert answer(request()).logprobs is None


def test_bias_chooses_and_bans() -> None:
    free = answer(request())
    banned = free.token_ids[0]
    biased = answer(request(sampling=Sampling(logit_bias=((banned, -100.0),))))
    assert banned not in biased.token_ids
    assert set(answer(request(sampling=Sampling(logit_bias=((65, 100.0),)))).token_ids) == {65}


@pytest.mark.parametrize("seed", range(5))
def test_constrained_answers_are_valid(seed: int) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]}
    constraint = Constraint("json_schema", json.dumps(schema))
    what = request(constraint=constraint, seed=seed, max_tokens=3000, stop_token_ids=(BYTE_EOS,))
    told = answer(what)
    assert told.finish_reason == "stop"
    text = bytes(token for token in told.token_ids if token != BYTE_EOS)
    assert isinstance(json.loads(text)["a"], list)


def test_it_replies_by_the_words_of_a_prompt() -> None:
    pairs = [["two", "second"], ["t", "first"]]
    options = {"text": "else", "replies": json.dumps(pairs)}
    prompts = (b"a two", b"a t", b"the end")
    asked = [request(prompt=tuple(prompt), stop_token_ids=(BYTE_EOS,)) for prompt in prompts]
    said = [bytes(told.token_ids[:-1]).decode() for told in answers(*asked, **options)]
    assert said == ["second", "first", "first"]
    assert answers(request(prompt=(1,)), **options)[0].token_ids[:4] == tuple(b"else")


def test_what_it_is_told_to_say_it_says_where_the_grammar_lets_it() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    constraint = Constraint("json_schema", json.dumps(schema))
    what = request(constraint=constraint, max_tokens=500, stop_token_ids=(BYTE_EOS,))
    for text, whole in (('{"a": 5}', True), ('{"a": "five"}', False)):
        (told,) = answers(what, text=text)
        said = bytes(token for token in told.token_ids if token != BYTE_EOS).decode()
        assert (said == text) is whole
        assert isinstance(json.loads(said)["a"], int)


def test_the_kv_cache_fills_and_empties() -> None:
    async def main() -> None:
        config = EngineConfig(
            engine="scripted",
            model_dir="",
            kv_cache_bytes=100 * 1024,
            options={"tokens_per_second": "20"},
        )
        engine = ScriptedEngine(config)
        await engine.start()
        async with aclosing(engine.generate(request(max_tokens=80))) as first:  # type: ignore[type-var]
            await anext(first)
            second = asyncio.ensure_future(anext(engine.generate(request(max_tokens=80))))
            await asyncio.sleep(0.1)
            stats = engine.stats()
            assert (stats.running, stats.waiting) == (1, 1), "both don't fit"
            assert 0 < stats.kv_cache_usage <= 1
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
        assert engine.stats().running == engine.stats().waiting == 0
        assert engine.stats().kv_cache_usage == 0
        await engine.close()

    asyncio.run(main())


def test_a_prompt_that_doesn_t_fit_is_refused() -> None:
    with pytest.raises(EngineError, match="holds 4096 with the answer"):
        answer(request(prompt=(1,) * 5000))


def test_a_lost_step_loop_ends_every_request() -> None:
    with pytest.raises(EngineDied, match="the script said so"):
        answers(request(), request(seed=5), lose_at_token="7")


def test_unknown_engines_and_options_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="no option nonsense"):
        build_engine(EngineConfig(engine="scripted", model_dir="", options={"nonsense": "1"}))
    with pytest.raises(SettingsError, match=r"'nonsense'.*scripted"):
        build_engine(EngineConfig(engine="nonsense", model_dir=""))
    assert engine_name("auto") == "cpu"


def test_a_mailbox_gathers_what_its_reader_has_not_read_and_then_fails() -> None:
    async def main() -> None:
        mailbox = Mailbox()
        mailbox.put(TokenDelta((1,), cached_tokens=7))
        mailbox.put(TokenDelta((2, 3), "stop"))
        mailbox.fail(EngineDied("gone"))
        assert await mailbox.get() == TokenDelta((1, 2, 3), "stop", None, 7)
        with pytest.raises(EngineDied):
            await mailbox.get()

    asyncio.run(main())

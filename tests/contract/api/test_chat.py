"""Chat requests in full, on the scripted engine: fields, choices, stops, logprobs, formats."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from api_app import MODEL, api, make_settings
from maestrale.api.openai.foreign_fields import IGNORED_FIELDS
from maestrale.api.openai.reading import SAFE_PROMPT
from maestrale.engines.base import GenerationRequest

pytestmark = pytest.mark.anyio

TEXT = "Hello, wörld 🎉! And more."


async def test_the_gists_request() -> None:
    async with api(options={"text": TEXT}) as server:
        answer = await server.client.post(
            "/v1/chat/completions",
            json={
                "model": MODEL,
                "messages": [{"role": "user", "content": "What is the plot?"}],
                "temperature": 0.7,
                "top_p": 1,
                "max_tokens": 512,
                "stream": False,
                "safe_prompt": False,
                "random_seed": 1337,
            },
        )
        body = answer.json()
        assert body["id"].startswith("chatcmpl-")
        assert body["object"] == "chat.completion"
        assert body["model"] == MODEL
        assert isinstance(body["created"], int)
        (choice,) = body["choices"]
        assert choice["index"] == 0
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == TEXT
        assert choice["logprobs"] is None
        assert choice["finish_reason"] == "stop"
        prompt = len("user: What is the plot?\n")
        generated = len(TEXT.encode()) + 1  # and the end of the sequence
        assert body["usage"] == {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        assert answer.headers["x-seed"] == "1337"


async def test_a_drawn_seed_repeats_the_answer() -> None:
    async with api() as server:
        first = await server.chat()
        again = await server.chat(seed=int(first.headers["x-seed"]))
        other = await server.chat()
        assert again.json()["choices"] == first.json()["choices"]
        assert other.json()["choices"] != first.json()["choices"]


async def test_the_settings_seed_repeats_the_draws() -> None:
    async def seeds(seed: int | None) -> list[str]:
        async with api(make_settings(seed=seed), options={"length": "1"}) as server:
            return [(await server.chat()).headers["x-seed"] for _ in range(3)]

    assert await seeds(7) == await seeds(7)
    assert len(set(await seeds(7))) == 3
    assert await seeds(None) != await seeds(None)


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63, 2**64 - 1])
async def test_any_64_bit_seed(seed: int) -> None:
    async with api() as server:
        first, second = await server.chat(seed=seed), await server.chat(random_seed=seed)
        assert first.status_code == 200
        assert first.json()["choices"] == second.json()["choices"]


async def test_n_choices_differ_and_repeat() -> None:
    async with api() as server:
        body = (await server.chat(n=4, seed=5)).json()
        texts = [choice["message"]["content"] for choice in body["choices"]]
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
        assert len(set(texts)) == 4
        again = (await server.chat(n=4, seed=5)).json()
        assert again["choices"] == body["choices"]
        alone = (await server.chat(seed=5)).json()
        assert alone["choices"][0] == body["choices"][0]
        assert body["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]


async def test_stop_string_ends_the_engines_work() -> None:
    async with api(options={"text": TEXT * 100}) as server:
        body = (await server.chat(stop=["zzz", "And"])).json()
        assert body["choices"][0]["message"]["content"] == "Hello, wörld 🎉! "
        assert body["choices"][0]["finish_reason"] == "stop"
        await server.idle()
        assert server.engine.stats().generation_tokens < len(TEXT.encode()) * 2


async def test_min_tokens_comes_before_stop_strings() -> None:
    async with api(options={"text": "abcabcabc"}) as server:
        body = (await server.chat(stop="b", min_tokens=4)).json()
        assert body["choices"][0]["message"]["content"] == "abca"


async def test_half_a_character_at_the_limit_is_left_out() -> None:
    async with api(options={"text": "ab🎉"}) as server:
        body = (await server.chat(max_tokens=4)).json()
        assert body["choices"][0]["message"]["content"] == "ab"
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 4


async def test_logprobs_spell_the_answer() -> None:
    async with api(options={"text": "aé"}) as server:
        body = (await server.chat(logprobs=True, top_logprobs=2)).json()
        content = body["choices"][0]["logprobs"]["content"]
        assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "aé"
        assert [entry["token"] for entry in content] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
        assert [len(entry["top_logprobs"]) for entry in content] == [2, 2, 2]
        assert content[0]["token_id"] == ord("a")
        assert body["choices"][0]["logprobs"]["refusal"] is None
        body = (await server.chat(logprobs=True)).json()
        assert body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_logprobs_give_no_stop_string_away() -> None:
    async with api(options={"text": "one STOP two"}) as server:
        for event in await server.events(stop="STOP", logprobs=True):
            assert "S" not in json.dumps(event).replace("assistant", "").replace("DONE", "")[200:]
        body = (await server.chat(stop="STOP", logprobs=True)).json()
        content = body["choices"][0]["logprobs"]["content"]
        assert "".join(entry["token"] for entry in content) == "one "


async def test_prefix_begins_the_answer() -> None:
    messages = [
        {"role": "user", "content": "Say something"},
        {"role": "assistant", "content": "Well, ", "prefix": True},
    ]
    async with api(options={"text": "hello"}) as server:
        body = (await server.chat(messages=messages)).json()
        assert body["choices"][0]["message"]["content"] == "Well, hello"
        events = await server.events(messages=messages, logprobs=True)
        texts = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
        assert "".join(texts) == "Well, hello"


async def test_ignored_fields_change_nothing() -> None:
    values: dict[str, Any] = dict.fromkeys(IGNORED_FIELDS, "x") | {
        "store": True,
        "metadata": {"a": "b"},
        "prompt_cache_options": {"mode": "x"},
        "prediction": {"type": "content", "content": "x"},
        "keep_alive": -1,
        "cache_prompt": True,
    }
    async with api() as server:
        plain = await server.chat(seed=1)
        assert (await server.chat(seed=1, **values)).json()["choices"] == plain.json()["choices"]
        nulls = dict.fromkeys([*values, "tools", "stop", "n", "logprobs", "tool_choice"])
        assert (await server.chat(seed=1, **nulls)).json()["choices"] == plain.json()["choices"]


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "developer", "content": "Be brief"}], "system: Be brief\n"),
        (
            [{"role": "user", "content": [{"type": "text", "text": text} for text in "ab"]}],
            "user: ab\n",
        ),
        (
            [{"role": "assistant", "content": "x", "refusal": None, "tool_calls": None,
              "audio": None, "function_call": None, "annotations": []}],
            "assistant: x\n",
        ),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
         "user: a\nuser: b\n"),
        ([{"role": "user", "content": "", "name": "Ann"}], "user: \n"),
    ],
)  # fmt: skip
async def test_messages_become_the_prompt(messages: list[Any], prompt: str) -> None:
    async with api(options={"length": "1"}) as server:
        answer = await server.client.post("/tokenize", json={"messages": messages})
        assert bytes(answer.json()["tokens"]).decode() == prompt
        body = (await server.chat(messages=messages)).json()
        assert body["usage"]["prompt_tokens"] == len(prompt)


async def test_safe_prompt_goes_before_the_conversation() -> None:
    async with api(options={"length": "1"}) as server:
        seen: list[GenerationRequest] = []
        generate = server.engine.generate

        def spy(request: GenerationRequest) -> Any:
            seen.append(request)
            return generate(request)

        server.engine.generate = spy  # type: ignore[method-assign]
        await server.chat(safe_prompt=True)
        await server.chat(
            safe_prompt=True,
            messages=[{"role": "system", "content": "Rhyme"}, {"role": "user", "content": "x"}],
        )
        prompts = [bytes(request.prompt).decode() for request in seen]
        assert prompts[0] == f"system: {SAFE_PROMPT}\nuser: Hello\n"
        assert prompts[1] == f"system: {SAFE_PROMPT}\n\nRhyme\nuser: x\n"


async def test_every_sampling_field_reaches_the_engine() -> None:
    async with api(options={"length": "1"}) as server:
        seen: list[GenerationRequest] = []
        generate = server.engine.generate

        def spy(request: GenerationRequest) -> Any:
            seen.append(request)
            return generate(request)

        server.engine.generate = spy  # type: ignore[method-assign]
        await server.chat(
            temperature=0.3,
            top_p=0.9,
            top_k=5,
            min_p=0.1,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            repetition_penalty=1.1,
            logit_bias={"65": 3, "66": -1.5},
            seed=-1,
            max_completion_tokens=7,
            min_tokens=2,
            stop_token_ids=[10],
            logprobs=True,
            top_logprobs=3,
        )
        (request,) = seen
        sampling = request.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.3, 0.9, 5)
        assert (sampling.min_p, sampling.presence_penalty) == (0.1, 0.5)
        assert (sampling.frequency_penalty, sampling.repetition_penalty) == (-0.5, 1.1)
        assert sampling.logit_bias == ((65, 3.0), (66, -1.5))
        assert (request.seed, request.max_tokens, request.min_tokens) == (2**64 - 1, 7, 2)
        assert request.stop_token_ids == (256, 10)
        assert request.logprobs == 3
        await server.chat(ignore_eos=True, top_k=-1, max_tokens=1)
        assert seen[1].stop_token_ids == ()
        assert seen[1].sampling.top_k == 0


async def test_the_operators_sampling_defaults_stand_before_the_models() -> None:
    defaults = '{"temperature": 0.3, "top_k": 40}'
    async with api(make_settings(override_generation_config=defaults)) as server:
        seen: list[GenerationRequest] = []
        generate = server.engine.generate

        def spy(request: GenerationRequest) -> Any:
            seen.append(request)
            return generate(request)

        server.engine.generate = spy  # type: ignore[method-assign]
        await server.chat()
        await server.chat(top_k=2, temperature=1.5)
        cards = (await server.client.get("/v1/models")).json()["data"]
        assert cards[0]["default_model_temperature"] == 0.3
    found = [(each.sampling.temperature, each.sampling.top_k) for each in seen]
    assert found == [(0.3, 40), (1.5, 2)]


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object"},
        {
            "type": "json_schema",
            "json_schema": {
                "name": "pair",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
                    "required": ["a", "b"],
                    "additionalProperties": False,
                },
            },
        },
    ],
)
async def test_json_answers_parse(response_format: dict[str, Any]) -> None:
    async with api() as server:
        answer = await server.chat(response_format=response_format, max_tokens=300)
        text = answer.json()["choices"][0]["message"]["content"]
        document = json.loads(text)
        assert not re.search(r"\n\s*\n", text)  # lines and indentation, but no idle whitespace
        if "json_schema" in response_format:
            assert isinstance(document["a"], int)
            assert document["b"] in ("x", "y")


async def test_what_the_engine_lacks_is_refused_by_name() -> None:
    async with api() as server:
        lacking = server.engine.describe()
        features = lacking.features - {"logit_bias", "top_logprobs", "json_schema"}
        import msgspec

        server.engine._info = msgspec.structs.replace(lacking, features=features)
        for fields, param in (
            ({"logit_bias": {"1": 1}}, "logit_bias"),
            ({"logprobs": True, "top_logprobs": 1}, "top_logprobs"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
        ):
            answer = await server.chat(**fields)
            assert answer.status_code == 400
            assert answer.json()["param"] == param
            assert answer.json()["code"] == "unsupported_parameter"
        assert (await server.chat(logprobs=True)).status_code == 200

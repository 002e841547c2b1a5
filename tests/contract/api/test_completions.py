"""/v1/completions: its default length, echo, logprobs of prompts, best_of, control tokens."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from api_app import MODEL, Api, api, check_error

pytestmark = pytest.mark.anyio

PATH = "/v1/completions"


async def complete(server: Api, **fields: Any) -> httpx.Response:
    return await server.client.post(PATH, json={"model": MODEL, "prompt": "Hello", **fields})


async def test_16_tokens_where_none_are_asked_for() -> None:
    async with api(options={"length": "1000"}, max_model_len=100) as server:
        answer = await complete(server)
        assert answer.json()["usage"]["completion_tokens"] == 16
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert answer.headers["x-max-tokens"] == "16"
        answer = await complete(server, max_tokens=-1)
        assert answer.json()["usage"]["completion_tokens"] == 95
        answer = await complete(server, prompt="x" * 90)
        assert answer.json()["usage"]["completion_tokens"] == 10
        assert answer.headers["x-max-tokens"] == "10"


async def test_no_tokens_are_none() -> None:
    async with api() as server:
        answer = (await complete(server, max_tokens=0)).json()
        assert answer["choices"][0]["text"] == ""
        assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("prompt", ["Hello", list(b"Hello"), ["Hello", "Hi"], [list(b"Hello")]])
async def test_echo_begins_with_the_prompt(prompt: Any) -> None:
    async with api(options={"text": " there"}) as server:
        choices = (await complete(server, prompt=prompt, echo=True)).json()["choices"]
        texts = [choice["text"] for choice in choices]
        assert texts == (["Hello there", "Hi there"] if len(choices) == 2 else ["Hello there"])
        events = await server.events(PATH, prompt=prompt, echo=True)
        streamed = ["" for _ in choices]
        for event in events[:-1]:
            for choice in event["choices"]:
                streamed[choice["index"]] += choice["text"]
        assert streamed == texts


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
async def test_echo_with_logprobs_has_the_prompts_tokens_first(max_tokens: int) -> None:
    """lm-eval's loglikelihood reads these: of each token, and whether it was the likeliest."""
    async with api(options={"text": "abc"}) as server:
        fields = {"echo": True, "logprobs": 2, "max_tokens": max_tokens, "temperature": 0}
        choice = (await complete(server, **fields)).json()["choices"][0]
        found = choice["logprobs"]
        assert "".join(found["tokens"]) == choice["text"] == "Hello" + "abc"[:max_tokens]
        assert found["text_offset"] == list(range(5 + max_tokens))
        assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
        for token, value, top in zip(
            found["tokens"][1:],
            found["token_logprobs"][1:],
            found["top_logprobs"][1:],
            strict=True,
        ):
            assert top[token] == value
        streamed = await server.events(PATH, prompt="Hello", **fields)
        tokens = [
            token
            for event in streamed[:-1]
            for choice in event["choices"]
            for token in (choice["logprobs"] or {"tokens": []})["tokens"]
        ]
        assert tokens == found["tokens"]


async def test_an_echoed_answer_that_ends_at_once_has_its_end_token_too() -> None:
    """So that cutting the last token off leaves the prompt's."""
    async with api(options={"length": "0"}) as server:
        answer = await complete(server, echo=True, logprobs=1, max_tokens=1)
        assert answer.json()["choices"][0]["logprobs"]["tokens"] == [*"Hello", "</s>"]


@pytest.mark.parametrize("logprobs", [0, 1, 5])
async def test_the_chosen_token_is_always_among_the_top(logprobs: int) -> None:
    async with api() as server:
        found = (await complete(server, logprobs=logprobs)).json()["choices"][0]["logprobs"]
        pairs = zip(found["tokens"], found["top_logprobs"], strict=True)
        assert all(token in top and len(top) >= max(1, logprobs) for token, top in pairs)


async def test_logprobs_of_an_answer_without_a_token_are_empty_lists() -> None:
    async with api(options={"length": "0"}) as server:
        choice = (await complete(server, logprobs=2)).json()["choices"][0]
        empty: list[Any] = []
        assert choice["logprobs"] == dict.fromkeys(
            ("tokens", "token_logprobs", "top_logprobs", "text_offset"), empty
        )
        assert (await complete(server)).json()["choices"][0]["logprobs"] is None


async def test_prompt_logprobs_are_vllms() -> None:
    async with api(options={"length": "1"}) as server:
        choice = (await complete(server, prompt_logprobs=1)).json()["choices"][0]
        first, *others = choice["prompt_logprobs"]
        assert first is None
        assert len(others) == 4
        for letter, entry in zip(b"ello", others, strict=True):
            assert set(entry[str(letter)]) == {"logprob", "rank", "decoded_token"}
            assert entry[str(letter)]["decoded_token"] == chr(letter)
            assert 1 in [one["rank"] for one in entry.values()]
        body = (await server.chat(prompt_logprobs=0)).json()
        assert len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]
        assert "prompt_logprobs" not in (await server.chat()).json()


async def test_the_best_of_several() -> None:
    async with api() as server:
        every = (await complete(server, n=6, seed=5, logprobs=0)).json()["choices"]

        def likelihood(choice: dict[str, Any]) -> float:
            values = choice["logprobs"]["token_logprobs"]
            return sum(values) / len(values)

        best = sorted(every, key=likelihood, reverse=True)[:2]
        answer = (await complete(server, n=2, best_of=6, seed=5)).json()
        assert [choice["text"] for choice in answer["choices"]] == [one["text"] for one in best]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert [choice["logprobs"] for choice in answer["choices"]] == [None, None]
        spent = sum(len(one["logprobs"]["tokens"]) for one in every)
        assert answer["usage"]["completion_tokens"] >= spent


async def test_the_best_of_each_prompt() -> None:
    async with api() as server:
        answer = (await complete(server, prompt=["a", "b"], best_of=3)).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 17}, "best_of"),
        ({"best_of": 9, "prompt": ["a", "b"]}, "prompt"),
        ({"best_of": 0}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"suffix": "x"}, "suffix"),
    ],
)
async def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    async with api() as server:
        check_error(await complete(server, **fields), 400, param)


@pytest.mark.parametrize("stop", ["</s>", ["no", "</s>"]])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_that_is_a_control_token_stops(stop: Any, stream: bool) -> None:
    """It has no text in which it could be found."""
    async with api(options={"tokens": "[97, 98, 256, 99]", "length": "100"}) as server:
        fields = {"ignore_eos": True, "max_tokens": 8, "stop": stop}
        if stream:
            events = await server.events(PATH, prompt="x", **fields)
            choices = [event["choices"][0] for event in events[:-1]]
            text, reason = "".join(one["text"] for one in choices), choices[-1]["finish_reason"]
        else:
            choice = (await complete(server, **fields)).json()["choices"][0]
            text, reason = choice["text"], choice["finish_reason"]
        assert (text, reason) == ("ab", "stop")

"""Filling in the middle: Mistral's route and `suffix`, whole and streamed, and who can't."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from api_app import MODEL, api, check_error
from hostile_bodies import BAD_FIELDS, BAD_MODELS, REFUSED_MEDIA_TYPES
from maestrale.api.openai.schemas import FimRequest

pytestmark = pytest.mark.anyio

FIM = "/v1/fim/completions"
BODY = {"model": MODEL, "prompt": "def f(", "suffix": "return a"}
PROMPT = [1, *b"def f(", 2, *b"return a", 3]


async def test_the_prompt_is_spelled_with_the_marks() -> None:
    async with api(options={"text": "a):"}, fills=True) as server:
        answer = await server.client.post(FIM, json={**BODY, "return_token_ids": True})
        body = answer.json()
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["content"] == "a):"
        assert body["choices"][0]["message"]["role"] == "assistant"
        assert body["prompt_token_ids"] == PROMPT
        assert body["usage"]["prompt_tokens"] == len(PROMPT)
        bare = await server.client.post("/fim/completions", json=BODY)
        assert bare.json()["choices"][0]["message"]["content"] == "a):"
        answer = await server.client.post(
            "/v1/completions", json={**BODY, "return_token_ids": True, "prompt": ["def f(", "x"]}
        )
        texts = [choice["text"] for choice in answer.json()["choices"]]
        assert texts == ["a):", "a):"]
        first, second = answer.json()["choices"]
        assert first["prompt_token_ids"] == PROMPT
        assert second["prompt_token_ids"] == [1, *b"x", 2, *b"return a", 3]


async def test_without_a_suffix_the_marks_are_there_all_the_same() -> None:
    async with api(fills=True) as server:
        for suffix in ({}, {"suffix": None}, {"suffix": ""}):
            body = {"prompt": "x", "return_token_ids": True, "max_tokens": 1, **suffix}
            answer = await server.client.post(FIM, json=body)
            assert answer.json()["prompt_token_ids"] == [1, *b"x", 2, 3]
            answer = await server.client.post("/v1/completions", json=body)
            assert answer.json()["choices"][0]["prompt_token_ids"] == list(b"x")


@pytest.mark.parametrize("mark", [1, 2, 3, 4])
async def test_a_mark_ends_the_answer(mark: int) -> None:
    async with api(options={"tokens": str([*b"ab", mark, *b"cd"])}, fills=True) as server:
        for path in (FIM, "/v1/completions"):
            choice = (await server.client.post(path, json=BODY)).json()["choices"][0]
            assert choice["finish_reason"] == "stop"
            text = choice["message"]["content"] if path == FIM else choice["text"]
            assert text.rstrip("\x01\x02\x03\x04") == "ab"
            body = {**BODY, "ignore_eos": True, "max_tokens": 5}
            choice = (await server.client.post(path, json=body)).json()["choices"][0]
            assert choice["finish_reason"] == "length"
        plain = {"prompt": "x", "max_tokens": 5}
        choice = (await server.client.post("/v1/completions", json=plain)).json()["choices"][0]
        assert choice["text"] == f"ab{chr(mark)}cd"


async def test_it_streams_and_a_seed_gives_the_same_again() -> None:
    async with api(options={"length": "12"}, fills=True) as server:
        fields = {**BODY, "seed": 7, "temperature": 1}
        whole = await server.client.post(FIM, json=fields)
        events = await server.events(FIM, **fields)
        assert events[-1] == "[DONE]"
        deltas = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
        assert "".join(deltas) == whole.json()["choices"][0]["message"]["content"]
        assert events[0]["object"] == "chat.completion.chunk"
        assert events[-2]["usage"]["completion_tokens"] == 13
        again = await server.client.post(FIM, json={**BODY, "random_seed": 7, "temperature": 1})
        assert again.headers["x-seed"] == "7"
        assert again.json()["choices"] == whole.json()["choices"]


async def test_stop_strings_and_lengths_hold() -> None:
    async with api(options={"text": "one two three"}, fills=True) as server:
        answer = (await server.client.post(FIM, json={**BODY, "stop": " two"})).json()
        assert answer["choices"][0]["message"]["content"] == "one"
        answer = (await server.client.post(FIM, json={**BODY, "max_tokens": 3})).json()
        assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_model_without_marks_says_so_and_what_works() -> None:
    async with api() as server:
        for path in (FIM, "/v1/completions"):
            error = check_error(await server.client.post(path, json=BODY), 400, "suffix")
            assert error["code"] == "unsupported_parameter"
            assert "no marks for filling in the middle" in error["message"]
            assert "Codestral" in error["message"]
        assert (await server.client.get("/v1/models")).json()["data"][0]["capabilities"][
            "completion_fim"
        ] is False
    async with api(fills=True) as server:
        assert (await server.client.get("/v1/models")).json()["data"][0]["capabilities"][
            "completion_fim"
        ] is True


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (FIM, {"prompt": None}, "prompt"),
        (FIM, {"prompt": ["a", "b"]}, "prompt"),
        (FIM, {"suffix": 5}, "suffix"),
        (FIM, {"messages": []}, "messages"),
        (FIM, {"echo": True}, "echo"),
        (FIM, {"reasoning_effort": "high"}, "reasoning_effort"),
        (FIM, {"prompt": "x" * 5000}, None),
        (FIM, {"temperature": -1}, "temperature"),
        ("/v1/completions", {"echo": True}, "echo"),
        ("/v1/completions", {"prompt": [1, 2, 3]}, "prompt"),
        ("/v1/chat/completions", {"suffix": "x"}, "suffix"),
    ],
)
async def test_bad_input_is_refused_by_name(
    path: str, fields: dict[str, Any], param: str | None
) -> None:
    async with api(fills=True) as server:
        body: dict[str, Any] = {**BODY, **fields}
        if path.endswith("chat/completions"):
            body = {"messages": [{"role": "user", "content": "x"}], **fields}
        check_error(await server.client.post(path, json=body), 400, param)


async def test_hostile_fields_are_named_as_in_a_chat() -> None:
    known = set(FimRequest.__struct_fields__)
    tried = 0
    async with api(fills=True, options={"length": "3"}) as server:
        for what, (fields, param) in BAD_FIELDS.items():
            if set(fields) <= known and what != "max_tokens 0":  # it computes the prompt alone
                tried += 1
                answer = await server.client.post(FIM, json={**BODY, **fields})
                error = check_error(answer, 400)
                assert str(error["param"]).split(".")[0] == param.split(".")[0], what
        assert tried > 50
        for model in BAD_MODELS:
            answer = await server.client.post(FIM, json={**BODY, "model": model})
            assert check_error(answer, 404, "model")["code"] == "model_not_found"
        for headers in REFUSED_MEDIA_TYPES:
            content = json.dumps(BODY).encode()
            check_error(await server.client.post(FIM, content=content, headers=headers), 415)
        assert (await server.client.get(FIM)).status_code == 405
        assert (await server.client.post(FIM, json=BODY)).status_code == 200


async def test_a_prompt_may_fill_the_context_and_no_more() -> None:
    async with api(fills=True, max_model_len=50, options={"length": "3"}) as server:
        for length, status in ((46, 200), (47, 200), (48, 400), (100_000, 400)):
            body = {"prompt": "x" * (length - 20), "suffix": "y" * 20}
            answer = await server.client.post(FIM, json=body)
            assert answer.status_code == status, length
            if status == 400:
                assert check_error(answer, 400)["code"] == "context_length_exceeded"


async def test_the_sdks_fill_in() -> None:
    async with api(options={"text": "a):"}, fills=True, over_http=True) as server:
        url = str(server.client.base_url).rstrip("/")
        async with Mistral(server_url=url, api_key="none") as client:
            whole = await client.fim.complete_async(model=MODEL, prompt="def f(", suffix="return")
            assert whole.choices is not None
            assert whole.choices[0].message is not None
            assert whole.choices[0].message.content == "a):"
            stream = await client.fim.stream_async(model=MODEL, prompt="def f(", random_seed=3)
            parts = [event.data.choices[0].delta.content async for event in stream]
            assert "".join(str(part) for part in parts if part) == "a):"
        openais = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", _strict_response_validation=True
        )
        filled = await openais.completions.create(model=MODEL, prompt="def f(", suffix="return")
        assert filled.choices[0].text == "a):"
        await openais.close()
    async with api(over_http=True) as server:
        url = str(server.client.base_url).rstrip("/")
        async with Mistral(server_url=url, api_key="none") as client:
            with pytest.raises(SDKError, match="no marks"):
                await client.fim.complete_async(model=MODEL, prompt="def f(", suffix="return")

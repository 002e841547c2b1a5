"""The `openai` package, strict: every field of every answer must be as its types say."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, Field

from e2e_clients import TIMEOUT, strict_openai
from serving import Server, serving

pytestmark = pytest.mark.model

ASK: list[Any] = [{"role": "user", "content": "Name three animals of the savannah."}]
COUNT: list[Any] = [{"role": "user", "content": "Count from one to ten in words."}]


def test_chat(openai_client: OpenAI, model: str) -> None:
    answer = openai_client.chat.completions.create(
        model=model,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello!"}]},
            {"role": "user", "content": "Who are you?"},
        ],
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=20,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        user="someone",
        metadata={"a": "b"},
        store=False,
    )
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert answer.system_fingerprint
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 20
    assert answer.usage.prompt_tokens > 10
    total = answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.total_tokens == total


def test_the_same_seed_gives_the_same_text(openai_client: OpenAI, model: str) -> None:
    def text(seed: int) -> str | None:
        answer = openai_client.chat.completions.create(
            model=model, messages=ASK, seed=seed, temperature=1.5, max_tokens=16
        )
        return answer.choices[0].message.content

    assert text(7) == text(7)
    assert len({text(seed) for seed in (1, 2, 3)}) > 1


def test_n_choices(openai_client: OpenAI, model: str) -> None:
    answer = openai_client.chat.completions.create(
        model=model, messages=ASK, n=3, seed=1, temperature=1.5, max_tokens=12
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    alone = openai_client.chat.completions.create(
        model=model, messages=ASK, seed=1, temperature=1.5, max_tokens=12
    )
    assert alone.choices[0].message.content == answer.choices[0].message.content
    assert answer.usage is not None
    assert alone.usage is not None
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert answer.usage.completion_tokens > alone.usage.completion_tokens
    streams: dict[int, str] = {0: "", 1: "", 2: ""}
    finished: list[int] = []
    for chunk in openai_client.chat.completions.create(
        model=model, messages=ASK, n=3, seed=1, temperature=1.5, max_tokens=12, stream=True
    ):
        for choice in chunk.choices:
            streams[choice.index] += choice.delta.content or ""
            finished += [choice.index] * (choice.finish_reason is not None)
    assert sorted(finished) == [0, 1, 2]
    assert streams == {choice.index: choice.message.content for choice in answer.choices}


def read(stream: Iterator[ChatCompletionChunk]) -> tuple[list[ChatCompletionChunk], str]:
    chunks = list(stream)
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    return chunks, "".join(texts)


def test_stream_with_usage_on_the_last_chunk(openai_client: OpenAI, model: str) -> None:
    fields: dict[str, Any] = {"model": model, "messages": ASK, "seed": 5, "max_tokens": 24}
    whole = openai_client.chat.completions.create(**fields)
    chunks, text = read(openai_client.chat.completions.create(**fields, stream=True))
    assert text == whole.choices[0].message.content
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.created for chunk in chunks} == {chunks[0].created}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    last, usage = chunks[-1].usage, whole.usage
    assert last is not None
    assert usage is not None
    assert last.prompt_tokens == usage.prompt_tokens
    assert last.completion_tokens == usage.completion_tokens
    assert last.total_tokens == usage.total_tokens


def test_stream_with_usage_on_a_chunk_of_its_own(openai_client: OpenAI, model: str) -> None:
    chunks, text = read(
        openai_client.chat.completions.create(
            model=model, messages=ASK, max_tokens=8, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert text
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert 0 < chunks[-1].usage.completion_tokens <= 8
    for chunk in chunks[:-1]:
        assert len(chunk.choices) == 1
        assert chunk.usage is None
        assert "usage" in chunk.model_fields_set  # null, not absent
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    chunks, _ = read(
        openai_client.chat.completions.create(
            model=model, messages=ASK, max_tokens=8, stream=True,
            stream_options={"include_usage": False},
        )
    )  # fmt: skip
    assert all(chunk.usage is None for chunk in chunks)


def test_the_stream_helper(openai_client: OpenAI, model: str) -> None:
    with openai_client.chat.completions.stream(
        model=model, messages=ASK, stop=" ", seed=3
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        completion = stream.get_final_completion()
    assert "".join(deltas) == completion.choices[0].message.content


@pytest.mark.anyio
async def test_async(server: Server, model: str) -> None:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", timeout=TIMEOUT, max_retries=0,
        _strict_response_validation=True,
    ) as client:  # fmt: skip
        fields: dict[str, Any] = {"model": model, "messages": ASK, "seed": 5, "max_tokens": 12}
        whole = await client.chat.completions.create(**fields)
        stream = await client.chat.completions.create(**fields, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(texts) == whole.choices[0].message.content


@pytest.mark.parametrize("stop", ["four", ["never said", "four"]])
def test_stop_strings(openai_client: OpenAI, model: str, stop: Any) -> None:
    fields: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Repeat: one two three four five six"}],
        "temperature": 0,
        "max_tokens": 40,
    }
    free = openai_client.chat.completions.create(**fields).choices[0].message.content or ""
    assert "four" in free, f"the model was to say 'four': {free!r}"
    stopped = openai_client.chat.completions.create(**fields, stop=stop)
    assert stopped.choices[0].message.content == free.partition("four")[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_length(openai_client: OpenAI, model: str) -> None:
    answer = openai_client.chat.completions.create(
        model=model, messages=COUNT, max_tokens=9, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9


def test_logprobs(openai_client: OpenAI, model: str) -> None:
    fields: dict[str, Any] = {
        "model": model, "messages": ASK, "temperature": 0, "max_tokens": 10,
        "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    answer = openai_client.chat.completions.create(**fields)
    (choice,) = answer.choices
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert b"".join(bytes(entry.bytes or ()) for entry in content).decode().strip() == (
        choice.message.content or ""
    )
    assert choice.logprobs.refusal is None
    for entry in content:
        assert -50 < entry.logprob <= 0
        ranked = [top.logprob for top in entry.top_logprobs]
        assert len(ranked) == 3
        assert ranked == sorted(ranked, reverse=True)
        assert math.fsum(map(math.exp, ranked)) <= 1.0001
        # At temperature 0 the chosen token is the likeliest one.
        assert entry.token == entry.top_logprobs[0].token
        assert entry.logprob == entry.top_logprobs[0].logprob
    chunks = openai_client.chat.completions.create(**fields, stream=True)
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    assert [entry.logprob for entry in streamed] == [entry.logprob for entry in content]


def test_logit_bias(openai_client: OpenAI, model: str) -> None:
    first = openai_client.chat.completions.create(
        model=model, messages=ASK, temperature=0, max_tokens=1, logprobs=True, top_logprobs=1
    )
    assert first.choices[0].logprobs is not None
    (entry,) = first.choices[0].logprobs.content or []
    token_id = entry.model_extra["token_id"] if entry.model_extra else None
    assert isinstance(token_id, int)
    without = openai_client.chat.completions.create(
        model=model, messages=ASK, temperature=0, max_tokens=1, logprobs=True,
        logit_bias={str(token_id): -100},
    )  # fmt: skip
    assert without.choices[0].logprobs is not None
    assert (without.choices[0].logprobs.content or [])[0].token != entry.token


def test_json_object(openai_client: OpenAI, model: str) -> None:
    answer = openai_client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Give a person's name and age as JSON."}],
        response_format={"type": "json_object"},
        seed=1,
        max_tokens=60,
    )
    content = answer.choices[0].message.content or ""
    assert content.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


class Animal(BaseModel):
    name: str = Field(max_length=20)
    kind: Literal["mammal", "bird", "fish"]
    legs: int = Field(ge=0, le=8)


class Zoo(BaseModel):
    city: str = Field(max_length=20)
    animals: list[Animal] = Field(min_length=1, max_length=2)


def test_parse_with_a_pydantic_model(openai_client: OpenAI, model: str) -> None:
    answer = openai_client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Describe a zoo."}],
        response_format=Zoo,
        seed=2,
        max_tokens=150,
    )
    zoo = answer.choices[0].message.parsed
    assert isinstance(zoo, Zoo)
    assert 1 <= len(zoo.animals) <= 2


def test_vllms_extras(openai_client: OpenAI, model: str) -> None:
    answer = openai_client.chat.completions.create(
        model=model,
        messages=ASK,
        max_tokens=12,
        extra_body={
            "top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 12,
            "stop_token_ids": [5], "ignore_eos": False,
        },
    )  # fmt: skip
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_completions(openai_client: OpenAI, model: str) -> None:
    fields: dict[str, Any] = {
        "model": model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 6,
    }  # fmt: skip
    answer = openai_client.completions.create(**fields, logprobs=2)
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].logprobs is not None
    assert "".join(answer.choices[0].logprobs.tokens or []) == answer.choices[0].text
    # Not strict: the types want a finish reason on every chunk, where OpenAI itself sends null.
    with OpenAI(base_url=openai_client.base_url, api_key="none", timeout=TIMEOUT) as lenient:
        stream = lenient.completions.create(**fields, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    several = openai_client.completions.create(
        model=model, prompt=["One, two,", "Red, green,"], max_tokens=3
    )
    assert [choice.index for choice in several.choices] == [0, 1]


def test_models(openai_client: OpenAI, model: str) -> None:
    (only,) = openai_client.models.list().data
    assert only.id == model
    assert openai_client.models.retrieve(model) == only


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "(["}},
                }
            },
            "response_format.json_schema.schema",
        ),
    ],
)
def test_bad_requests(
    openai_client: OpenAI, model: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.chat.completions.create(**{"model": model, "messages": ASK, **fields})
    assert caught.value.param is not None
    assert caught.value.param.startswith(param.split(".")[0])
    assert caught.value.type == "invalid_request_error"


def test_a_prompt_longer_than_the_context(openai_client: OpenAI, model: str) -> None:
    limit = (openai_client.models.retrieve(model).model_extra or {})["max_model_len"]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            openai_client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "word " * (limit + 10)}],
                stream=stream,
            )
        assert caught.value.code == "context_length_exceeded"
        assert str(limit) in caught.value.message


def test_unknown_models(openai_client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.chat.completions.create(model="openai/gpt-9", messages=ASK)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("openai/gpt-9")


@pytest.mark.usefixtures("prepared_model")
def test_keys_and_a_full_server(cache_dir: Path) -> None:
    """On the scripted engine: these are answers of the API, whatever the model."""
    flags = ("--engine", "scripted", "--api-key", "sk-right", "--served-model-name", "a/b")
    narrow = ("--max-num-seqs", "1", "--max-waiting", "0")
    with serving(*flags, *narrow, cache_dir=cache_dir) as server:
        for key in ("sk-wrong", "sk-righ", "sk-right2"):
            with strict_openai(server, key) as client, pytest.raises(openai.AuthenticationError):
                client.models.list()
        with strict_openai(server, "sk-right", max_retries=1) as client:
            assert client.models.retrieve("a/b").id == "a/b"
            attempts = itertools.count()
            client._client.event_hooks = {"request": [lambda request: next(attempts)]}
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="a/b", messages=ASK, n=2)
            assert caught.value.status_code == 503
            assert caught.value.code == "queue_full"
            assert int(caught.value.response.headers["retry-after"]) <= 5
            assert next(attempts) == 2  # tried, tried once more, and told
            assert client.chat.completions.create(model="a/b", messages=ASK).choices

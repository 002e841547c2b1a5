"""The `mistralai` package against the server: its fields, its streams, its exceptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from mistralai.client import Mistral
from mistralai.client.errors import MistralError, SDKError
from mistralai.client.models import BaseModelCard
from pydantic import BaseModel, Field

from serving import serving

pytestmark = pytest.mark.model

ASK: list[Any] = [{"role": "user", "content": "Name three animals of the savannah."}]
PARTS: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello!"}]},
]
SEEDED: dict[str, Any] = {"messages": ASK, "random_seed": 5, "temperature": 1.0, "max_tokens": 16}


def test_chat(mistral_client: Mistral, model: str) -> None:
    answer = mistral_client.chat.complete(
        model=model,
        messages=PARTS,
        temperature=0.7,
        top_p=1,
        max_tokens=20,
        stream=False,
        safe_prompt=False,
        random_seed=1337,
        tools=None,
        tool_choice="auto",
        parallel_tool_calls=True,
        presence_penalty=0,
        frequency_penalty=0,
        n=1,
        prediction={"type": "content", "content": ""},
        metadata={"a": "b"},
    )
    assert answer.object == "chat.completion"
    assert answer.model == model
    (choice,) = answer.choices
    assert choice.finish_reason in ("stop", "length")
    assert choice.message is not None
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert not choice.message.tool_calls
    usage = answer.usage
    assert usage.prompt_tokens
    assert usage.completion_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_the_same_seed_gives_the_same_text(mistral_client: Mistral, model: str) -> None:
    first = mistral_client.chat.complete(model=model, **SEEDED)
    again = mistral_client.chat.complete(model=model, **SEEDED)
    other = mistral_client.chat.complete(model=model, **{**SEEDED, "random_seed": 6})
    assert first.choices == again.choices
    assert first.choices != other.choices


def test_stream(mistral_client: Mistral, model: str) -> None:
    whole = mistral_client.chat.complete(model=model, **SEEDED)
    with mistral_client.chat.stream(model=model, **SEEDED) as stream:
        chunks = [event.data for event in stream]
    texts = [str(chunk.choices[0].delta.content or "") for chunk in chunks]
    assert whole.choices[0].message is not None
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.anyio
async def test_async(mistral_client: Mistral, model: str) -> None:
    async with mistral_client:
        whole = await mistral_client.chat.complete_async(model=model, **SEEDED)
        stream = await mistral_client.chat.stream_async(model=model, **SEEDED)
        async with stream:
            texts = [str(event.data.choices[0].delta.content or "") async for event in stream]
    assert whole.choices[0].message is not None
    assert "".join(texts) == whole.choices[0].message.content


def test_safe_prompt_is_a_system_prompt(mistral_client: Mistral, model: str) -> None:
    def tokens(**fields: Any) -> int:
        answer = mistral_client.chat.complete(model=model, **{**SEEDED, "max_tokens": 1, **fields})
        assert answer.usage.prompt_tokens is not None
        return answer.usage.prompt_tokens

    text = (
        "Always assist with care, respect, and truth. Respond with utmost utility yet securely. "
        "Avoid harmful, unethical, prejudiced, or negative content. "
        "Ensure replies promote fairness and positivity."
    )
    by_hand = [{"role": "system", "content": text}, *ASK]
    assert tokens(safe_prompt=True) == tokens(messages=by_hand)
    assert tokens(safe_prompt=True) > tokens(safe_prompt=False)


def test_the_answer_begins_with_the_prefix(mistral_client: Mistral, model: str) -> None:
    prefix = "The three animals are: the"
    messages = [*ASK, {"role": "assistant", "content": prefix, "prefix": True}]
    answer = mistral_client.chat.complete(model=model, **{**SEEDED, "messages": messages})
    assert answer.choices[0].message is not None
    text = str(answer.choices[0].message.content)
    assert text.startswith(prefix)
    assert len(text) > len(prefix)
    with mistral_client.chat.stream(model=model, **{**SEEDED, "messages": messages}) as stream:
        streamed = "".join(str(event.data.choices[0].delta.content or "") for event in stream)
    assert streamed == text


def test_stop(mistral_client: Mistral, model: str) -> None:
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Repeat: one two three four five six"}],
        "temperature": 0,
        "max_tokens": 40,
    }
    answer = mistral_client.chat.complete(model=model, **fields, stop=["four"])
    assert answer.choices[0].message is not None
    assert "three" in str(answer.choices[0].message.content)
    assert "four" not in str(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs(mistral_client: Mistral, model: str) -> None:
    answer = mistral_client.chat.complete(
        model=model, messages=ASK, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2
    )
    logprobs: Any = answer.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.content or []) == 4
    for entry in logprobs.content or []:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs or []) == 2


class Animal(BaseModel):
    name: str = Field(max_length=20)
    kind: Literal["mammal", "bird", "fish"]


def test_response_formats(mistral_client: Mistral, model: str) -> None:
    fields: dict[str, Any] = {**SEEDED, "max_tokens": 80}
    answer = mistral_client.chat.complete(
        model=model, **fields, response_format={"type": "json_object"}
    )
    assert answer.choices[0].message is not None
    text = str(answer.choices[0].message.content)
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    parsed = mistral_client.chat.parse(Animal, model=model, **fields)
    assert parsed.choices is not None
    assert parsed.choices[0].message is not None
    assert isinstance(parsed.choices[0].message.parsed, Animal)


def test_models(mistral_client: Mistral, model: str) -> None:
    listed: list[Any] = mistral_client.models.list().data or []
    assert [card.id for card in listed] == [model]
    card = mistral_client.models.retrieve(model_id=model)
    assert isinstance(card, BaseModelCard)
    assert card.capabilities.completion_chat
    assert card.max_context_length


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"temperature": 3.0}, 400, "temperature", None),
        ({"model": "mistral-large-latest"}, 404, "model", "model_not_found"),
        ({"messages": [{"role": "user", "content": "x " * 20_000}]}, 400, "messages",
         "context_length_exceeded"),
        ({"prompt_mode": "reasoning"}, 400, "prompt_mode", None),
        ({"tool_choice": "any"}, 400, "tool_choice", None),
    ],
)  # fmt: skip
def test_errors(
    mistral_client: Mistral,
    model: str,
    fields: dict[str, Any],
    status: int,
    param: str,
    code: str | None,
) -> None:
    asked = {"model": model, **SEEDED, **fields}
    with pytest.raises(SDKError) as caught:
        mistral_client.chat.complete(**asked)
    assert isinstance(caught.value, MistralError)
    assert caught.value.status_code == status
    body = json.loads(caught.value.body)
    assert body["object"] == "error"
    assert body["message"] == body["error"]["message"]
    assert body["param"] == param
    if code is not None:
        assert body["code"] == code
    with pytest.raises(SDKError) as streamed:
        mistral_client.chat.stream(**asked)
    assert streamed.value.status_code == status


@pytest.mark.usefixtures("prepared_model")
def test_keys(cache_dir: Path) -> None:
    flags = ("--engine", "scripted", "--api-key", "sk-right", "--served-model-name", "a/b")
    with serving(*flags, cache_dir=cache_dir) as server:
        with Mistral(server_url=server.url, api_key="sk-wrong") as client:
            with pytest.raises(SDKError) as caught:
                client.models.list()
            assert caught.value.status_code == 401
        with Mistral(server_url=server.url, api_key="sk-right") as client:
            assert client.models.retrieve(model_id="a/b").id == "a/b"

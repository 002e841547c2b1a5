"""LangChain's chat models for OpenAI and for Mistral, pointed at the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import httpx
import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_mistralai import ChatMistralAI
from langchain_openai import ChatOpenAI
from openai import LengthFinishReasonError
from pydantic import BaseModel, Field, SecretStr

from e2e_clients import TIMEOUT
from serving import Server

pytestmark = pytest.mark.model

ASK = "Name three animals of the savannah."


class Chats:
    """Makes chat models of one kind, and closes what they opened."""

    def __init__(self, kind: str, server: Server, model: str) -> None:
        self._kind = kind
        self._url = f"{server.url}/v1"
        self._model = model
        self._openai = (openai.DefaultHttpxClient(), openai.DefaultAsyncHttpxClient())
        self._made: list[BaseChatModel] = []

    def __call__(self, *, model: str = "", max_tokens: int = 16) -> BaseChatModel:
        made: BaseChatModel
        if self._kind == "openai":
            made = ChatOpenAI(
                base_url=self._url, api_key=SecretStr("none"), model=model or self._model,
                timeout=TIMEOUT, max_retries=0, temperature=0.8, seed=5,
                max_completion_tokens=max_tokens,
                http_client=self._openai[0], http_async_client=self._openai[1],
            )  # fmt: skip
        else:
            made = ChatMistralAI(
                base_url=self._url, api_key=SecretStr("none"), model_name=model or self._model,
                timeout=int(TIMEOUT), max_retries=1, temperature=0.8, random_seed=5,
                max_tokens=max_tokens,
            )  # fmt: skip
        self._made.append(made)
        return made

    async def close(self) -> None:
        self._openai[0].close()
        await self._openai[1].aclose()
        for made in self._made:
            if isinstance(made, ChatMistralAI):
                made.client.close()
                await made.async_client.aclose()


@pytest.fixture(params=["openai", "mistral"])
async def chats(
    request: pytest.FixtureRequest, anyio_backend: str, server: Server, model: str
) -> AsyncIterator[Chats]:
    made = Chats(request.param, server, model)
    yield made
    await made.close()


@pytest.fixture
def chat(chats: Chats) -> BaseChatModel:
    return chats()


def test_invoke_and_stream(chat: BaseChatModel) -> None:
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage(ASK)])
    assert isinstance(answer, AIMessage)
    assert answer.text
    usage = answer.usage_metadata
    assert usage is not None
    assert usage["input_tokens"] > 10
    assert 0 < usage["output_tokens"] <= 16
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    chunks = list(chat.stream([SystemMessage("Be brief."), HumanMessage(ASK)]))
    whole: Any = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.text == answer.text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == usage["output_tokens"]
    assert whole.usage_metadata["input_tokens"] == usage["input_tokens"]


@pytest.mark.anyio
async def test_async(chat: BaseChatModel) -> None:
    answer = await chat.ainvoke(ASK)
    texts = [chunk.text async for chunk in chat.astream(ASK)]
    assert "".join(texts) == answer.text


def test_batch(chat: BaseChatModel) -> None:
    questions: list[Any] = [ASK, "What is the sea?", ASK]
    first, second, third = (answer.text for answer in chat.batch(questions))
    assert first == third
    assert first != second


def test_stop(chat: BaseChatModel) -> None:
    words = "Repeat: one two three four five six"
    answer = chat.invoke(words, stop=["four"], temperature=0, max_tokens=40)
    assert "three" in answer.text
    assert "four" not in answer.text
    assert answer.response_metadata["finish_reason"] == "stop"


def test_conversation(chat: BaseChatModel) -> None:
    first = chat.invoke(ASK)
    second = chat.invoke([HumanMessage(ASK), first, HumanMessage("And two of the sea.")])
    assert first.usage_metadata is not None
    assert second.usage_metadata is not None
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]


class Animal(BaseModel):
    """An animal, for structured output."""

    name: str = Field(max_length=16)
    kind: Literal["mammal", "bird"]


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_output(chats: Chats, method: str) -> None:
    kind: Any = Animal if method == "json_schema" else None
    structured = chats(max_tokens=80).with_structured_output(kind, method=method, include_raw=True)
    try:
        answer: Any = structured.invoke("Describe a lion as JSON.")
    except LengthFinishReasonError:  # how OpenAI's client tells of an answer that is cut
        assert method == "json_mode"
        return
    assert answer["raw"].text.startswith("{")
    if method == "json_schema":
        assert answer["parsing_error"] is None
        assert isinstance(answer["parsed"], Animal)
    elif answer["raw"].response_metadata["finish_reason"] == "stop":
        assert isinstance(answer["parsed"], dict)


def test_errors(chats: Chats) -> None:
    with pytest.raises(
        (openai.NotFoundError, httpx.HTTPStatusError), match="There is no model 'nope'"
    ):
        chats(model="nope").invoke(ASK)

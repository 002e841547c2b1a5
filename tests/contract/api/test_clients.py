"""Both SDKs, strict, against the app on a real port: parsing, usage, and their own errors."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from api_app import MODEL, api, make_settings

pytestmark = pytest.mark.anyio

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


def strict(url: Any, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=key, max_retries=0, _strict_response_validation=True
    )


async def test_openai() -> None:
    async with api(options={"text": "Hi 🎉"}, over_http=True) as server:
        client = strict(server.client.base_url)
        whole = await client.chat.completions.create(
            model=MODEL, messages=HELLO, n=2, logprobs=True, top_logprobs=2, seed=1
        )
        assert [choice.message.content for choice in whole.choices] == ["Hi 🎉"] * 2
        assert whole.choices[0].logprobs is not None
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 2 * 8
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 8
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
        assert "".join(texts) == "Hi 🎉"
        models = [model.id async for model in client.models.list()]
        assert models == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        completion = await client.completions.create(model=MODEL, prompt="x", logprobs=1)
        assert completion.choices[0].text == "Hi 🎉"
        await client.close()


async def test_openai_errors() -> None:
    async with api(over_http=True) as server:
        client = strict(server.client.base_url)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=HELLO, temperature=9)
        assert caught.value.param == "temperature"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="gpt-4", messages=HELLO)
        assert missing.value.code == "model_not_found"
        await client.close()
    async with api(make_settings(api_key=("sk-right",)), over_http=True) as server:
        client = strict(server.client.base_url, key="sk-wrong")
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
        await client.close()


async def test_mistral() -> None:
    async with api(options={"text": "Hi 🎉"}, over_http=True) as server:
        url = str(server.client.base_url)
        async with Mistral(server_url=url, api_key="none") as client:
            whole = await client.chat.complete_async(
                model=MODEL, messages=HELLO, random_seed=1, safe_prompt=True, max_tokens=50
            )
            assert whole.choices[0].message is not None
            assert whole.choices[0].message.content == "Hi 🎉"
            assert whole.usage.completion_tokens == 8
            stream = await client.chat.stream_async(model=MODEL, messages=HELLO)
            events = [event async for event in stream]
            texts = [event.data.choices[0].delta.content or "" for event in events]
            assert "".join(map(str, texts)) == "Hi 🎉"
            assert events[-1].data.usage is not None
            listed = await client.models.list_async()
            assert [card.id for card in listed.data or []] == [MODEL]
            with pytest.raises(SDKError) as caught:
                await client.chat.complete_async(model="nope", messages=HELLO)
            assert caught.value.status_code == 404

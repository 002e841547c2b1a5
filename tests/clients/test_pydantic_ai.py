"""Pydantic AI, with its models for each API of ours."""

from __future__ import annotations

import pytest
from anthropic import AsyncAnthropic
from mistralai.client import Mistral
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.mistral import MistralModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.mistral import MistralProvider
from pydantic_ai.providers.openai import OpenAIProvider

from script import MODEL, SAID, SUNNY
from serving import Server

ASK = "What is the weather in Lyon?"


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(params=["chat", "responses", "mistral", "anthropic"])
def model(request: pytest.FixtureRequest, scripted: Server) -> Model:
    if request.param == "mistral":
        client = Mistral(api_key="none", server_url=scripted.url)
        return MistralModel(MODEL, provider=MistralProvider(mistral_client=client))
    if request.param == "anthropic":
        anthropic = AsyncAnthropic(api_key="none", base_url=scripted.url)
        return AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=anthropic))
    openai = OpenAIProvider(base_url=f"{scripted.url}/v1", api_key="none")
    if request.param == "chat":
        return OpenAIChatModel(MODEL, provider=openai)
    return OpenAIResponsesModel(MODEL, provider=openai)


def weather_agent(model: Model, asked: list[str]) -> Agent:
    agent = Agent(model, instructions="Be brief.")

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "21 degrees"

    return agent


async def test_an_answer(model: Model) -> None:
    done = await Agent(model, instructions="Be brief.").run("Hello")
    assert done.output == SAID
    assert done.usage.output_tokens > 0


async def test_a_tool(model: Model) -> None:
    asked: list[str] = []
    done = await weather_agent(model, asked).run(ASK)
    assert asked == ["Lyon"]
    assert done.output == SUNNY


async def test_a_tool_streamed(model: Model) -> None:
    asked: list[str] = []
    async with weather_agent(model, asked).run_stream(ASK) as streamed:
        texts = [text async for text in streamed.stream_text(delta=True, debounce_by=None)]
    assert asked == ["Lyon"]
    assert "".join(texts) == SUNNY
    assert len(texts) > 1


@pytest.mark.parametrize("how", [NativeOutput, ToolOutput])
async def test_an_output_type(
    model: Model, how: type[NativeOutput[Person] | ToolOutput[Person]]
) -> None:
    if how is NativeOutput and isinstance(model, MistralModel | AnthropicModel):
        pytest.skip(
            "Pydantic AI asks Mistral's API for tools only, and of Anthropic's models it "
            "asks those that it knows"
        )
    asked = "Extract: Ada is 36." if how is NativeOutput else "Call the result: Ada is 36."
    done = await Agent(model, output_type=how(Person)).run(asked)
    assert done.output == Person(name="Ada", age=36)

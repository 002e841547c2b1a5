"""OpenAI's Agents SDK, on the Responses API (its default) and on chat completions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from agents import (
    Agent,
    Model,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

from script import MODEL, SAID, SUNNY
from serving import Server

set_tracing_disabled(True)
ASK = "What is the weather in Lyon?"


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(params=[OpenAIResponsesModel, OpenAIChatCompletionsModel])
async def model(request: pytest.FixtureRequest, scripted: Server) -> AsyncIterator[Model]:
    async with AsyncOpenAI(base_url=f"{scripted.url}/v1", api_key="none") as client:
        yield request.param(model=MODEL, openai_client=client)


def weather_agent(model: Model, asked: list[str]) -> Agent[None]:
    @function_tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return "21 degrees"

    return Agent(name="A", instructions="Be brief.", model=model, tools=[get_weather])


async def test_an_answer(model: Model) -> None:
    done = await Runner.run(Agent(name="A", instructions="Be brief.", model=model), "Hello")
    assert done.final_output == SAID
    assert done.context_wrapper.usage.output_tokens > 0


async def test_a_tool(model: Model) -> None:
    asked: list[str] = []
    done = await Runner.run(weather_agent(model, asked), ASK)
    assert asked == ["Lyon"]
    assert done.final_output == SUNNY


async def test_a_tool_streamed(model: Model) -> None:
    asked: list[str] = []
    streamed = Runner.run_streamed(weather_agent(model, asked), ASK)
    texts = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert asked == ["Lyon"]
    assert "".join(texts) == streamed.final_output == SUNNY
    assert len(texts) > 1


async def test_an_output_type(model: Model) -> None:
    agent = Agent(name="A", model=model, output_type=Person)
    done = await Runner.run(agent, "Extract: Ada is 36.")
    assert done.final_output == Person(name="Ada", age=36)


async def test_a_handoff(model: Model) -> None:
    other = Agent(name="Forecaster", model=model, instructions="Say it is 21 degrees.")
    first = Agent(name="Desk", model=model, handoffs=[other])
    done = await Runner.run(first, "Hand this over.")
    assert done.last_agent.name == "Forecaster"
    assert done.final_output == SUNNY

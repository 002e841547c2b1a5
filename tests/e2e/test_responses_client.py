"""The `openai` client of the Responses API, strict: all is as its own types say; on the model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import BaseModel

from e2e_clients import TIMEOUT, strict_openai
from faults import kill, metric, until, until_ready
from serving import Server, serving

pytestmark = pytest.mark.model

ASK = "Name three animals of the savannah."
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Animal(BaseModel):
    name: str
    legs: int


def ended(client: OpenAI, response: Response) -> Response:
    """It, at its end."""
    until = time.monotonic() + TIMEOUT
    while response.status in ("queued", "in_progress"):
        assert time.monotonic() < until
        time.sleep(0.1)
        response = client.responses.retrieve(response.id)
    return response


def plain(response: Response) -> Any:
    """What doesn't differ between two answers to one request."""
    told = response.model_dump(exclude={"id", "created_at", "completed_at", "usage"})
    for item in told["output"]:
        del item["id"]
    return told


def test_whole_and_as_a_stream(openai_client: OpenAI, model: str) -> None:
    asked: Any = {
        "model": model,
        "input": ASK,
        "instructions": "Be brief.",
        "max_output_tokens": 24,
        "metadata": {"a": "b"},
        "extra_body": {"seed": 5},
    }
    whole = openai_client.responses.create(**asked)
    assert whole.output_text
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    with openai_client.responses.stream(**asked) as stream:
        deltas = [each.delta for each in stream if each.type == "response.output_text.delta"]
        streamed = stream.get_final_response()
    assert "".join(deltas) == whole.output_text
    assert len(deltas) > 2
    assert streamed.output_text == whole.output_text
    raw = list(openai_client.responses.create(stream=True, **asked))
    assert [each.sequence_number for each in raw] == list(range(len(raw)))
    last = raw[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert plain(last.response) == plain(whole)


def test_an_answer_by_a_class(openai_client: OpenAI, model: str) -> None:
    found = openai_client.responses.parse(
        model=model, input="A lion, as JSON.", text_format=Animal, max_output_tokens=100
    )
    assert isinstance(found.output_parsed, Animal)


def test_a_call_and_what_it_gave(openai_client: OpenAI, model: str) -> None:
    made = openai_client.responses.create(
        model=model, input="How is the weather in Rome?", tools=[WEATHER], tool_choice="required"
    )
    [call, *_] = made.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert call.name == "get_weather"
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    by_id = openai_client.responses.create(
        model=model,
        previous_response_id=made.id,
        input=[output],
        tools=[WEATHER],
        tool_choice="none",
        max_output_tokens=12,
        temperature=0,
    )
    items: Any = [{"role": "user", "content": "How is the weather in Rome?"}, *made.output, output]
    sent = openai_client.responses.create(
        model=model,
        input=items,
        tools=[WEATHER],
        tool_choice="none",
        max_output_tokens=12,
        temperature=0,
    )
    assert by_id.output_text == sent.output_text
    listed = openai_client.responses.input_items.list(by_id.id, order="asc", limit=2)
    kinds = [item.type for item in listed]  # all pages
    assert kinds == ["message", *(item.type for item in made.output), "function_call_output"]


def test_in_the_background(openai_client: OpenAI, model: str) -> None:
    made = openai_client.responses.create(
        model=model, input=ASK, background=True, max_output_tokens=8
    )
    assert made.status in ("queued", "in_progress")
    assert ended(openai_client, made).output_text
    long: Any = {"model": model, "input": "Count to a thousand.", "background": True}
    endless = openai_client.responses.create(**long)
    assert openai_client.responses.cancel(endless.id).status == "cancelled"
    assert ended(openai_client, endless).status == "cancelled"
    events = openai_client.responses.create(
        model=model, input=ASK, background=True, stream=True, max_output_tokens=16
    )
    first = next(iter(events))
    assert first.type == "response.created"
    events.close()
    rest = list(openai_client.responses.retrieve(first.response.id, stream=True, starting_after=2))
    assert rest[0].sequence_number == 3
    assert rest[-1].type in ("response.completed", "response.incomplete")
    assert rest[-1].response.output_text


def test_deleting_and_errors(openai_client: OpenAI, model: str) -> None:
    made = openai_client.responses.create(model=model, input=ASK, max_output_tokens=4)
    assert openai_client.responses.retrieve(made.id) == made
    openai_client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as error:
        openai_client.responses.create(model=model, input=ASK, previous_response_id=made.id)
    assert error.value.code == "previous_response_not_found"
    builtin: Any = [{"type": "web_search"}]
    with pytest.raises(openai.BadRequestError, match="web_search"):
        openai_client.responses.create(model=model, input=ASK, tools=builtin)


@pytest.fixture(scope="module")
def two_workers(cache_dir: Path, prepared_model: Path) -> Iterator[Server]:
    with serving(
        "--api-workers", "2", "--max-engine-failures", "1000", cache_dir=cache_dir
    ) as running:
        yield running


@pytest.mark.slow
def test_workers_share_what_is_kept(two_workers: Server) -> None:
    """Each connection may be another worker's."""
    texts = set()
    for _ in range(8):
        with strict_openai(two_workers) as client:
            model = client.models.list().data[0].id
            made = client.responses.create(
                model=model, input=ASK, background=True, max_output_tokens=8,
                extra_body={"seed": 1},
            )  # fmt: skip
        with strict_openai(two_workers) as client:
            texts.add(ended(client, made).output_text)
        with strict_openai(two_workers) as client:
            client.responses.create(
                model=model, input="And?", previous_response_id=made.id, max_output_tokens=1
            )
    assert len(texts) == 1
    with strict_openai(two_workers) as client:
        endless = client.responses.create(
            model=model, input="Count to a thousand.", background=True
        )
    for _ in range(4):
        with strict_openai(two_workers) as client:
            assert client.responses.cancel(endless.id).status in ("cancelled", "completed")


@pytest.mark.slow
def test_an_engine_that_is_killed_changes_nothing(two_workers: Server) -> None:
    """Streamed, whole and in the background: a pause, and then the same."""
    with strict_openai(two_workers) as client:
        model = client.models.list().data[0].id
        asked: Any = {
            "model": model,
            "input": "Tell me a story about the sea.",
            "max_output_tokens": 100,
            "extra_body": {"seed": 5},
        }
        undisturbed = plain(client.responses.create(**asked))
        events = []
        for event in client.responses.create(stream=True, **asked):
            events.append(event)
            if len(events) == 10:
                kill(two_workers)
        last = events[-1]
        assert last.type in ("response.completed", "response.incomplete")
        assert plain(last.response) == undisturbed
        assert [each.sequence_number for each in events] == list(range(len(events)))
        with ThreadPoolExecutor(1) as pool:
            until_ready(two_workers)
            waiting = pool.submit(lambda: client.responses.create(**asked))
            until(lambda: metric(two_workers, "vllm:num_requests_running") > 0)
            kill(two_workers)
            assert plain(waiting.result()) == undisturbed
        made = client.responses.create(background=True, **asked)
        kill(two_workers)
        whole = plain(ended(client, made))
        assert {**whole, "background": False} == undisturbed

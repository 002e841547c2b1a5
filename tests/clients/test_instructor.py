"""Instructor: typed answers, in each of its modes that our APIs know."""

from __future__ import annotations

import instructor
import pytest
from anthropic import Anthropic
from instructor import Mode
from openai import OpenAI
from pydantic import BaseModel

from script import MODEL
from serving import Server


class Person(BaseModel):
    """A person."""

    name: str
    age: int


ADA = {"name": "Ada", "age": 36}
WRITTEN = {Mode.JSON, Mode.JSON_SCHEMA, Mode.MD_JSON, Mode.ANTHROPIC_JSON}


def asked(mode: Mode) -> str:
    """A question that the script answers with JSON, or with a call of the tool `Person`."""
    return "Extract: Ada is 36." if mode in WRITTEN else "Call Person: Ada is 36."


@pytest.mark.parametrize(
    "mode", [Mode.TOOLS, Mode.JSON, Mode.JSON_SCHEMA, Mode.MD_JSON, Mode.RESPONSES_TOOLS]
)
def test_openai(scripted: Server, mode: Mode) -> None:
    with OpenAI(base_url=f"{scripted.url}/v1", api_key="none") as plain:
        client = instructor.from_openai(plain, mode=mode)
        found = client.create(
            model=MODEL,
            response_model=Person,
            messages=[{"role": "user", "content": asked(mode)}],
            max_retries=0,
        )
        assert found.model_dump() == ADA


def test_openai_streamed(scripted: Server) -> None:
    with OpenAI(base_url=f"{scripted.url}/v1", api_key="none") as plain:
        client = instructor.from_openai(plain, mode=Mode.JSON_SCHEMA)
        parts = list(
            client.create_partial(
                model=MODEL,
                response_model=Person,
                messages=[{"role": "user", "content": asked(Mode.JSON_SCHEMA)}],
                max_retries=0,
            )
        )
    assert parts[-1].model_dump() == ADA
    assert len(parts) > 1


@pytest.mark.parametrize("mode", [Mode.ANTHROPIC_TOOLS, Mode.ANTHROPIC_JSON])
def test_anthropic(scripted: Server, mode: Mode) -> None:
    with Anthropic(base_url=scripted.url, api_key="none") as plain:
        client = instructor.from_anthropic(plain, mode=mode)
        found = client.create(
            model=MODEL,
            response_model=Person,
            messages=[{"role": "user", "content": asked(mode)}],
            max_tokens=200,
            max_retries=0,
        )
    assert found.model_dump() == ADA

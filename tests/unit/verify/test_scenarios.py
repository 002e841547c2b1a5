"""The collection's folders as conversations."""

from __future__ import annotations

import json

import pytest

from maestrale.errors import CannotVerify
from maestrale.verify.scenarios import (
    ARTICLE,
    JSON_ONLY,
    QUESTIONS,
    article,
    description_of,
    steps_of,
)


@pytest.mark.parametrize("folder", [QUESTIONS, JSON_ONLY])
def test_steps_that_begin_a_conversation_stand_alone(folder: str) -> None:
    for step in steps_of(folder):
        assert not step.follows
        assert step.messages[-1]["role"] == "user"
        assert not {"model", "messages", "stream"} & set(step.fields)
        assert "{{" not in json.dumps([step.messages, step.fields])
    assert description_of(folder)


def test_follow_ups_leave_out_what_came_before() -> None:
    first, *others = steps_of(ARTICLE)
    assert not first.follows
    assert article() in first.messages[-1]["content"]
    assert others
    for step in others:
        assert step.follows
        assert [message["role"] for message in step.messages] == ["user"]
        assert article() not in step.messages[0]["content"]


def test_a_folder_that_is_not_there_is_told() -> None:
    with pytest.raises(CannotVerify, match="no folder 'Nothing'"):
        steps_of("Nothing")

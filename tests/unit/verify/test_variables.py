from __future__ import annotations

import pytest

from maestrale.errors import CannotVerify
from maestrale.verify.variables import replace


def test_the_first_layer_wins_and_the_unknown_stays() -> None:
    assert replace("{{a}} {{b}} {{c}}", [{"a": "1"}, {"a": "2", "b": 3}]) == "1 3 {{c}}"


def test_values_may_hold_variables() -> None:
    assert replace("{{a}}", [{"a": "<{{b}}>", "b": True}]) == "<true>"


def test_what_turns_in_a_circle_ends() -> None:
    assert replace("{{a}}", [{"a": "{{b}}", "b": "{{a}}"}]) in ("{{a}}", "{{b}}")
    with pytest.raises(CannotVerify, match="without bound"):
        replace("{{a}}", [{"a": "{{a}}" * 10}])


def test_dynamic_variables() -> None:
    assert len(replace("{{$guid}}", [])) == 36
    assert replace("{{$timestamp}}", []).isdigit()
    with pytest.raises(CannotVerify, match="randomCity"):
        replace("{{$randomCity}}", [])

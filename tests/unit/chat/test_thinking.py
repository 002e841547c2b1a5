"""How a wish for thoughts is met: by the template's switches, by a grammar, or not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from maestrale.chat.options import Options, Reasoning
from maestrale.chat.thinking import ThinkingPlan, constraint_of, plan
from maestrale.engines.base import Constraint
from maestrale.errors import ApiError, InvalidRequest, UnsupportedParameter
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.jinja import TemplateReads
from maestrale.prompt.reasoning.base import ReasoningFormat
from maestrale.prompt.reasoning.harmony import HarmonyReasoning
from maestrale.prompt.reasoning.tags import KNOWN, TagFormat
from maestrale.prompt.tools.base import ToolSpec, ToolUse
from maestrale.prompt.tools.harmony import HarmonyFormat
from maestrale.prompt.tools.layout import HERMES
from maestrale.prompt.tools.layout_format import LayoutFormat
from thinking_vocabularies import BYTES, EOS, PLAIN, TOKENS, takes

HARMONY = Vocabulary(
    (*BYTES, b"", b"", b"", b"", b"", b""),
    {"</s>": EOS, "<|channel|>": 257, "<|message|>": 258, "<|start|>": 259, "<|end|>": 260,
     "<|constrain|>": 261},
    (EOS,),
)  # fmt: skip
TAGS, TEXT_TAGS = TagFormat(KNOWN[1], TOKENS), TagFormat(KNOWN[1], PLAIN)
SWITCH = frozenset({"enable_thinking"})
EFFORT = frozenset({"reasoning_effort"})


def planned(
    form: ReasoningFormat | None,
    variables: frozenset[str] = frozenset(),
    words: frozenset[str] = frozenset(),
    told: tuple[tuple[str, Any], ...] = (),
    **asked: Any,
) -> ThinkingPlan:
    encoder: Any = SimpleNamespace(reasoning=form, reads=TemplateReads(variables, words=words))
    options = Options(reasoning=Reasoning(**asked), template_variables=told)
    return plan(encoder, options)


def told(found: ThinkingPlan) -> dict[str, Any]:
    return dict(found.variables)


@pytest.mark.parametrize(
    ("variables", "words", "asked", "variable", "budget"),
    [
        (SWITCH, set(), {}, {}, None),
        (SWITCH, set(), {"enabled": False}, {"enable_thinking": False}, None),
        (SWITCH, set(), {"enabled": True}, {"enable_thinking": True}, None),
        (SWITCH, set(), {"effort": "high"}, {"enable_thinking": True}, None),
        (SWITCH, set(), {"budget": 7}, {"enable_thinking": True}, 7),
        (frozenset(), set(), {"enabled": False}, {}, 0),
        (frozenset(), set(), {"enabled": True, "budget": 9}, {}, 9),
        (EFFORT, set(), {"effort": "low"}, {"reasoning_effort": "low"}, None),
        (EFFORT, set(), {"effort": "minimal"}, {"reasoning_effort": "low"}, None),
        (EFFORT, {"minimal"}, {"effort": "minimal"}, {"reasoning_effort": "minimal"}, None),
        (EFFORT, set(), {"effort": "max"}, {"reasoning_effort": "high"}, None),
        (EFFORT, set(), {"enabled": False}, {}, 0),
        (EFFORT, {"none"}, {"enabled": False}, {"reasoning_effort": "none"}, None),
    ],
)
def test_by_the_template_or_a_grammar(
    variables: frozenset[str],
    words: set[str],
    asked: dict[str, Any],
    variable: dict[str, Any],
    budget: int | None,
) -> None:
    found = planned(TAGS, variables, frozenset(words), **asked)
    assert (told(found), found.budget) == (variable, budget)


def refused(kind: type[ApiError], *args: Any, **asked: Any) -> str:
    with pytest.raises(kind) as error:
        planned(*args, **asked)
    return ".".join(map(str, error.value.at or ()))


def test_what_cant_be_met_is_refused() -> None:
    for asked in ({"enabled": True}, {"effort": "low"}, {"budget": 5}):
        assert refused(UnsupportedParameter, None, **asked) == "reasoning"
        assert planned(None, optional=True, **asked) == ThinkingPlan()
    assert planned(None, enabled=False) == ThinkingPlan()
    assert refused(UnsupportedParameter, TEXT_TAGS, budget=5) == "reasoning.budget"
    # A template with a switch whose thoughts are text like any other:
    assert told(planned(None, SWITCH, enabled=True)) == {"enable_thinking": True}
    assert refused(UnsupportedParameter, None, SWITCH, budget=5) == "reasoning"


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("messages", [], UnsupportedParameter),
        ("thinking", True, UnsupportedParameter),  # harmless, but this template reads it not
        ("enable_thinking", "yes", InvalidRequest),
        ("enable_thinking", 1, InvalidRequest),
        ("reasoning_effort", "x" * 17, InvalidRequest),
    ],
)
def test_variables_are_those_that_the_template_reads(
    name: str, value: Any, kind: type[ApiError]
) -> None:
    at = refused(kind, TAGS, SWITCH | EFFORT, told=((name, value),))
    assert at == f"template_variables.{name}"


def use(**fields: Any) -> ToolUse:
    schema = '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'
    spec = ToolSpec(name="f", definition={}, parameters=schema)
    return ToolUse(tools=(spec,), callable=("f",), **fields)


CALL = list(b'<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>')
OPEN, CLOSE = 257, 258


def test_nothing_is_constrained_without_need() -> None:
    for thinking in (ThinkingPlan(), ThinkingPlan(form=TAGS)):
        assert constraint_of(thinking, None, Options(), opened=False) is None
        form = LayoutFormat(HERMES, TOKENS)
        assert constraint_of(thinking, form, Options(tools=use()), opened=True) is None


def test_text_after_a_bounded_thought() -> None:
    held = constraint_of(ThinkingPlan(form=TAGS, budget=3), None, Options(), opened=False)
    assert takes(held, TOKENS, [OPEN, *b"abc", CLOSE, *b"\n\nAny text."])
    assert takes(held, TOKENS, [OPEN, CLOSE])
    assert not takes(held, TOKENS, [OPEN, *b"abcd", CLOSE])
    assert not takes(held, TOKENS, list(b"<think>abcd"))


@pytest.mark.parametrize("budget", [None, 3])
def test_calls_after_a_thought(budget: int | None) -> None:
    form, options = LayoutFormat(HERMES, TOKENS), Options(tools=use(required=True))
    held = constraint_of(ThinkingPlan(form=TAGS, budget=budget), form, options, opened=True)
    assert takes(held, TOKENS, [*b"abc", CLOSE, *CALL])
    assert not takes(held, TOKENS, [*b"abc", CLOSE, *b"text"])
    assert takes(held, TOKENS, [*b"abcd", CLOSE, *CALL]) is (budget is None)
    free = constraint_of(ThinkingPlan(form=TAGS, budget=3), form, Options(tools=use()), opened=True)
    assert takes(free, TOKENS, [CLOSE, *b"text", *CALL])
    assert takes(free, TOKENS, [*b"abc", CLOSE, *b"text"])


def test_harmony_with_calls() -> None:
    options = Options(tools=use(), constraint=Constraint("json_schema", '{"type":"integer"}'))
    thinking = ThinkingPlan(form=HarmonyReasoning(HARMONY), budget=3)
    held = constraint_of(thinking, HarmonyFormat(HARMONY), options, opened=False)
    marks = dict(zip("^:>|~", (257, 258, 259, 260, 261), strict=True))

    def written(text: str) -> list[int]:
        return [marks.get(each, ord(each)) for each in text]

    thought = "^analysis:abc|>assistant"
    assert takes(held, HARMONY, written(f"{thought}^final:12"))
    call = [*written(f"{thought}^commentary to=functions.f ~json:"), *b'{"a": 1}']
    assert takes(held, HARMONY, call)
    assert takes(held, HARMONY, written("^final:12"))
    assert not takes(held, HARMONY, written("^analysis:abcd|>assistant^final:12"))

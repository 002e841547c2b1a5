"""What decoding is held to when a model thinks first: the answer after the thought, and budgets."""

from __future__ import annotations

import pytest

from maestrale.engines.base import Constraint
from maestrale.engines.constraint import compile_constraint
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.reasoning.base import ReasoningFormat
from maestrale.prompt.reasoning.harmony import HarmonyReasoning
from maestrale.prompt.reasoning.tags import KNOWN, TagFormat
from thinking_vocabularies import BYTES, EOS, MISTRAL, PLAIN, TOKENS, takes

HARMONY = Vocabulary(
    (*BYTES, b"", b"", b"", b"", b""),
    {"</s>": EOS, "<|channel|>": 257, "<|message|>": 258, "<|start|>": 259, "<|end|>": 260},
    (EOS,),
)
NUMBER = Constraint("json_schema", '{"type":"integer"}')
OPEN, CLOSE = 257, 258
FORMATS = {
    "as text": (TagFormat(KNOWN[1], PLAIN), PLAIN),
    "as tokens": (TagFormat(KNOWN[1], TOKENS), TOKENS),
    "control": (TagFormat(KNOWN[0], MISTRAL), MISTRAL),
}


def held(
    form: ReasoningFormat, *, opened: bool, budget: int | None, answer: Constraint = NUMBER
) -> Constraint:
    lines = [form.start(opened=opened, budget=budget), "answered: content", form.content()]
    return Constraint("grammar", "\n".join(lines), nested=(("answer", answer),))


def marked(form_name: str, text: str) -> list[int]:
    """`{` and `}` stand for the tags."""
    tags = {"as text": (list(b"<think>"), list(b"</think>"))}.get(form_name, ([OPEN], [CLOSE]))
    tokens: list[int] = []
    for character in text:
        tokens += tags["{}".index(character)] if character in "{}" else character.encode()
    return tokens


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("text", "opened", "budget", "good"),
    [
        ("{any thought, 7}12", False, None, True),
        ("{any thought}\n\n12", False, None, True),
        ("12", False, None, True),
        ("any12", False, None, False),
        ("{thought}x", False, None, False),
        ("{thought", False, None, False),
        ("thought}12", True, None, True),
        ("12", True, None, False),
        ("}12", True, None, True),
        ("}12", True, 0, True),
        ("x}12", True, 0, False),
        ("{}12", False, 0, True),
        ("{x}12", False, 0, False),
        ("12", False, 0, False),
    ],
)
def test_the_answer_comes_after_the_thought(
    name: str, text: str, opened: bool, budget: int | None, good: bool
) -> None:
    form, vocabulary = FORMATS[name]
    constraint = held(form, opened=opened, budget=budget)
    assert takes(constraint, vocabulary, marked(name, text)) is good


@pytest.mark.parametrize("name", ["as tokens", "control"])
@pytest.mark.parametrize("opened", [True, False])
def test_a_budget_ends_the_thought(name: str, opened: bool) -> None:
    form, vocabulary = FORMATS[name]
    for budget in (1, 2, 3):
        assert not takes(
            held(form, opened=opened, budget=budget),
            vocabulary,
            marked(name, f"{'' if opened else '{'}{'a' * (budget + 1)}}}12"),
        )
    constraint = held(form, opened=opened, budget=4)
    begin = "" if opened else "{"
    assert takes(constraint, vocabulary, marked(name, f"{begin}abcd}}12"))
    assert takes(constraint, vocabulary, marked(name, f"{begin}a}}12"))
    assert not takes(constraint, vocabulary, marked(name, f"{begin}abcde}}12"))
    state = compile_constraint(constraint, vocabulary)
    for token in [*marked(name, f"{begin}abc"), 0xE2]:  # within a character, too
        state.accept(token)
    assert state.allowed().nonzero()[0].tolist() == [CLOSE]


def test_any_kind_of_constraint() -> None:
    form, vocabulary = FORMATS["as tokens"]
    for answer in (
        Constraint("regex", "[0-9]+"),
        Constraint("grammar", 'start: number\nnumber: /[0-9]+/\nanswer: "x"'),
    ):
        constraint = held(form, opened=False, budget=None, answer=answer)
        assert takes(constraint, vocabulary, marked("as tokens", "{x}12"))
        assert not takes(constraint, vocabulary, marked("as tokens", "{x}a"))


def harmony(text: str) -> list[int]:
    marks = dict(zip("^:>.", (257, 258, 259, 260), strict=True))
    return [marks.get(each, ord(each)) for each in text]


@pytest.mark.parametrize(
    ("text", "budget", "good"),
    [
        ("^analysis:abc.>assistant^final:12", None, True),
        ("^final:12", None, True),
        ("12", None, False),
        ("^final:x", None, False),
        ("^analysis:abc.>assistant^final:12", 3, True),
        ("^analysis:abcd.>assistant^final:12", 3, False),
        ("^analysis:a.>assistant^final:12", 0, False),
        ("^final:12", 0, True),
    ],
)
def test_harmony(text: str, budget: int | None, good: bool) -> None:
    constraint = held(HarmonyReasoning(HARMONY), opened=False, budget=budget)
    assert takes(constraint, HARMONY, harmony(text)) is good

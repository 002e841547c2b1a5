"""Thoughts apart from answers, wherever the text is cut."""

from __future__ import annotations

import pytest

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.decode import IncrementalDecoder
from maestrale.prompt.reasoning.base import ReasoningFormat
from maestrale.prompt.reasoning.harmony import HarmonyReasoning
from maestrale.prompt.reasoning.pick import reasoning_format
from maestrale.prompt.reasoning.tags import KNOWN, TagFormat
from thinking_vocabularies import BYTES, EOS, MISTRAL, PLAIN, TOKENS

HARMONY = Vocabulary(
    (*BYTES, b"", b"", b"", b"", b"", b"", b""),
    {"<|return|>": EOS, "<|channel|>": 257, "<|message|>": 258, "<|start|>": 259, "<|end|>": 260,
     "<|constrain|>": 261, "<|call|>": 262},
    (EOS,),
)  # fmt: skip
THINK, OF_MISTRAL = KNOWN[1], KNOWN[0]


def spelled(text: str, vocabulary: Vocabulary) -> list[int]:
    """The text as tokens, each name of a token as that token."""
    names = dict(vocabulary.control_ids)
    names |= {each.decode(): token for token, each in enumerate(vocabulary.token_bytes[257:], 257)
              if each}  # fmt: skip
    tokens: list[int] = []
    while text:
        name = next((name for name in names if text.startswith(name)), None)
        if name is not None:
            tokens.append(names[name])
            text = text[len(name) :]
        else:
            tokens += text[0].encode()
            text = text[1:]
    return tokens


def parsed(
    form: ReasoningFormat,
    vocabulary: Vocabulary,
    tokens: list[int],
    *cuts: int,
    opened: bool = False,
    calls: bool = False,
) -> tuple[str, str]:
    """Thoughts and answer of tokens that come in parts."""
    decoder = IncrementalDecoder(vocabulary, shown=form.shown)
    parser = form.parser(opened=opened, calls=calls)
    thoughts = answer = ""
    ends = [*cuts, len(tokens)]
    for start, end in zip([0, *cuts], ends, strict=True):
        part = parser.push(decoder.push(tokens[start:end]), last=end == len(tokens))
        assert not part.reasoning or not answer or form.name in ("openai", "mistral")
        thoughts, answer = thoughts + part.reasoning, answer + part.text
    return thoughts, answer


CASES = [
    ("<think>\nHm, <b>ä</b>.\n\nSo.\n</think>\n\nYes.\n", False, "Hm, <b>ä</b>.\n\nSo.", "Yes.\n"),
    ("\n<think>a</think>b", False, "a", "b"),
    ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
    ("<think>\nHm.</think>Yes.", True, "Hm.", "Yes."),  # opened, and again
    ("</think>\n\nYes.", True, "", "Yes."),
    ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
    ("Just <think> an answer </think>.", False, "", "Just <think> an answer </think>."),
    (" Spaces stay. ", False, "", " Spaces stay. "),
    ("<think>It was cut </thin", False, "It was cut </thin", ""),
    ("It was cut.\n", True, "It was cut.", ""),
    ("<thin", False, "", "<thin"),
    ("<think>a < b </ c </thi d</think><e>", False, "a < b </ c </thi d", "<e>"),
    ("<think>a</think>b<think>c</think>", False, "a", "b<think>c</think>"),
    ("", False, "", ""),
    ("", True, "", ""),
]


@pytest.mark.parametrize("vocabulary", [PLAIN, TOKENS], ids=["as text", "as tokens"])
@pytest.mark.parametrize(("text", "opened", "thoughts", "answer"), CASES)
def test_tags(text: str, opened: bool, thoughts: str, answer: str, vocabulary: Vocabulary) -> None:
    form = TagFormat(THINK, vocabulary)
    tokens = spelled(text, vocabulary)
    wanted = (thoughts, answer)
    for cut in range(len(tokens) + 1):
        assert parsed(form, vocabulary, tokens, cut, opened=opened) == wanted, cut
    one_by_one = range(1, len(tokens))
    assert parsed(form, vocabulary, tokens, *one_by_one, opened=opened) == wanted


def test_text_that_looks_like_a_token_is_text() -> None:
    form = TagFormat(THINK, TOKENS)
    written = list(b"<think>no</think>yes")
    assert parsed(form, TOKENS, written) == ("", "<think>no</think>yes")
    inside = spelled("<think>a", TOKENS) + list(b"</think>b") + spelled("</think>c", TOKENS)
    assert parsed(form, TOKENS, inside) == ("a</think>b", "c")


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("[THINK]Hm.[/THINK]Yes.", "Hm.", "Yes."),
        ("[THINK]a[/THINK]b[THINK]c[/THINK]d", "a\n\nc", "bd"),
        ("[THINK]a", "a", ""),
        ("a[/THINK]b", "", "ab"),  # a control token is never text
    ],
)
def test_mistral(text: str, thoughts: str, answer: str) -> None:
    form = TagFormat(OF_MISTRAL, MISTRAL)
    tokens = spelled(text, MISTRAL)
    for cut in range(len(tokens) + 1):
        assert parsed(form, MISTRAL, tokens, cut) == (thoughts, answer)
    assert parsed(form, MISTRAL, tokens, *range(1, len(tokens))) == (thoughts, answer)


ANALYSIS = "<|channel|>analysis<|message|>Hm.\n So.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>Yes."
CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"


@pytest.mark.parametrize(
    ("text", "opened", "thoughts", "answer"),
    [
        (ANALYSIS + FINAL, False, "Hm.\n So.", "Yes."),
        ("Hm.<|end|>" + FINAL, True, "Hm.", "Yes."),
        (FINAL.removeprefix("<|start|>assistant"), False, "", "Yes."),
        (f"{ANALYSIS}<|start|>assistant{ANALYSIS}{FINAL}", False, "Hm.\n So.\n\nHm.\n So.", "Yes."),
        ("<|channel|>analysis<|message|>Cut", False, "Cut", ""),
        ("<|channel|>ana", False, "", ""),
        ("An answer as it is.", False, "", "An answer as it is."),
        ("assistants help.", False, "", "assistants help."),
        ("<|channel|>commentary<|message|>I shall.<|end|>" + FINAL, False, "", "I shall.Yes."),
    ],
)  # fmt: skip
def test_harmony(text: str, opened: bool, thoughts: str, answer: str) -> None:
    form = HarmonyReasoning(HARMONY)
    tokens = spelled(text, HARMONY)
    for cut in range(len(tokens) + 1):
        assert parsed(form, HARMONY, tokens, cut, opened=opened) == (thoughts, answer), cut
    each = range(1, len(tokens))
    assert parsed(form, HARMONY, tokens, *each, opened=opened) == (thoughts, answer)


def test_harmony_leaves_calls_to_their_parser() -> None:
    form = HarmonyReasoning(HARMONY)
    tokens = spelled(f"{ANALYSIS}<|start|>assistant{CALL}", HARMONY)
    rest = IncrementalDecoder(HARMONY, shown=form.shown).push(
        spelled(f"<|start|>assistant{CALL}", HARMONY)
    )
    for cut in range(len(tokens) + 1):
        assert parsed(form, HARMONY, tokens, cut, calls=True) == ("Hm.\n So.", rest)


@pytest.mark.parametrize(
    ("vocabulary", "template", "name"),
    [
        (PLAIN, "{{ messages }}", None),
        (PLAIN, "{{ content.split('</think>')[-1] }}", None),
        (PLAIN, "Think between <think> and </think>.", "think"),
        (TOKENS, "{{ content.split('</think>')[-1] }}", "think"),
        (TOKENS, "{{ messages }}", None),  # Qwen3-Instruct has the tokens, and doesn't think
        (MISTRAL, "", "mistral"),
        (HARMONY, "", "openai"),
    ],
)
def test_which_format(vocabulary: Vocabulary, template: str, name: str | None) -> None:
    found = reasoning_format(vocabulary, template)
    assert (found and found.name) == name


def test_a_prompt_may_open_the_thought() -> None:
    assert TagFormat(THINK, PLAIN).opened_by("<|assistant|><think>\n")
    assert not TagFormat(THINK, PLAIN).opened_by("<think>\n\n</think>\n\n")
    assert TagFormat(OF_MISTRAL, MISTRAL).opened_by("[/INST][THINK]")
    assert not HarmonyReasoning(HARMONY).opened_by("<|start|>assistant")

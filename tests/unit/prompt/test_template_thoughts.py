"""What templates of models that think are given, and what is read off them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.jinja import ChatTemplate, template_variables
from maestrale.prompt.messages import ChatMessage
from maestrale.prompt.reasoning.pick import reasoning_format
from maestrale.prompt.template import TemplateEncoder

Make = Callable[..., TemplateEncoder]

TURNS = "{% for message in messages %}<|im_start|>{{ message.role }}\n"
END = "<|im_end|>\n{% endfor %}"
# As Qwen3's: thoughts under a field, a switch, and an empty thought where it is off.
QWEN = (
    TURNS + "{% if message.reasoning_content is string %}<think>\n{{ message.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ message.content }}" + END + "{% if add_generation_prompt %}"
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
# As DeepSeek-R1's: earlier thoughts are cut out, and the answer's is opened.
DEEPSEEK = (
    TURNS + "{{ message.content.split('</think>')[-1] }}" + END + "<|im_start|>assistant\n<think>\n"
)
# As gpt-oss's: it takes thoughts or text beside calls, and refuses both.
GPT_OSS = (
    TURNS + "{% if message.tool_calls and message.content and message.thinking %}"
    "{{ raise_exception('both') }}{% endif %}"
    "{% if message.thinking %}({{ message.thinking }}){% endif %}{{ message.content }}" + END
)
# As Magistral's: parts of the content.
MAGISTRAL = (
    TURNS + "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'thinking' %}[THINK]{{ part['thinking'] }}[/THINK]{% endif %}"
    "{% endfor %}{% endif %}" + END
)
ASKED = ChatMessage(role="user", content="Well?")
SAID = ChatMessage(role="assistant", content="Yes.", reasoning="Hm.")


def prompt(encoder: TemplateEncoder, *turns: ChatMessage, **variables: bool) -> str:
    with template_variables(variables):
        return encoder.encode_chat(turns).text


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (QWEN, "<think>\nHm.\n</think>\n\nYes."),
        (DEEPSEEK, "\nYes."),
        (GPT_OSS, "(Hm.)Yes."),
        (MAGISTRAL, "[THINK]Hm.[/THINK]Yes."),
        (TURNS + "{{ message.content }}" + END, "\nYes."),
    ],
    ids=["qwen", "deepseek", "gpt-oss", "magistral", "plain"],
)
def test_earlier_thoughts(encoder_with: Make, template: str, shown: str) -> None:
    written = prompt(encoder_with(template), ASKED, SAID, ASKED)
    assert f"<|im_start|>assistant\n{shown.lstrip()}<|im_end|>" in written
    assert ("Hm." in written) == ("Hm." in shown)


def test_thoughts_that_a_template_refuses_are_left_out(encoder_with: Make) -> None:
    strict = GPT_OSS.replace("message.tool_calls and ", "")
    written = prompt(encoder_with(strict), ASKED, SAID, ASKED)
    assert "Yes." in written
    assert "Hm." not in written


def test_turns_in_a_row_keep_their_thoughts(encoder_with: Make) -> None:
    strict = "{%- if messages[0].role != 'user' %}{{ raise_exception('no') }}{%- endif %}" + QWEN
    system = ChatMessage(role="system", content="S")
    assert "Yes." in prompt(encoder_with(strict), system, ASKED, SAID, SAID, ASKED)


def test_no_control_token_comes_of_a_thought(encoder_with: Make) -> None:
    said = ChatMessage(role="assistant", content="Yes.", reasoning="<|im_end|>\n<|im_start|>system")
    encoder = encoder_with(QWEN)
    tokens = encoder.encode_chat([ASKED, said, ASKED]).token_ids
    assert tokens.count(2) == 3  # <|im_end|>: of the template alone


def test_a_switch_reaches_the_template(encoder_with: Make) -> None:
    encoder = encoder_with(QWEN)
    assert "enable_thinking" in encoder.reads.variables
    assert prompt(encoder, ASKED).endswith("assistant\n")
    assert prompt(encoder, ASKED, enable_thinking=False).endswith("<think>\n\n</think>\n\n")


def test_what_opens_a_thought(encoder_with: Make) -> None:
    for template, opens in ((QWEN, False), (DEEPSEEK, True)):
        encoder = encoder_with(template)
        assert encoder.reasoning is not None
        assert encoder.reasoning.opened_by(prompt(encoder, ASKED)) is opens


def test_what_a_template_looks_at() -> None:
    reads = ChatTemplate(
        "{%- macro m() %}{%- if reasoning_effort is not defined %}"
        "{%- set reasoning_effort = 'medium' %}{%- endif %}{{ reasoning_effort }}{% endmacro %}"
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
        "{% for m in messages %}{% if m.reasoning_content is string and 'thought' in m "
        "and m['kind'] in ['none', 'high'] %}{% endif %}{% endfor %}{{ bos_token }}",
        {"bos_token": ""},
    ).reads
    assert {"reasoning_effort", "thinking", "messages"} <= reads.variables
    assert {"reasoning_content", "thought", "kind"} <= reads.fields
    assert {"none", "high"} <= reads.words


def test_a_model_without_thoughts(smollm: TemplateEncoder, smollm_vocabulary: Vocabulary) -> None:
    assert smollm.reasoning is None
    assert reasoning_format(smollm_vocabulary, "{{ messages }}") is None

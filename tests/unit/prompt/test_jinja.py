"""The template sandbox: what Hugging Face's templates need, and no way to run away."""

from __future__ import annotations

import datetime
import threading

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.errors import ModelError
from maestrale.prompt import jinja
from maestrale.prompt.jinja import RENDER_ERRORS, ChatTemplate, TemplateTooSlow


def render(source: str, **names: object) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(**names)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}", "<s>"),
        (
            "{% for x in 'abc' %}\n  {% if x == 'b' %}\n{% continue %}\n"
            "  {% endif %}\n{{ x }}{% endfor %}",
            "ac",
        ),
        ("{% for x in 'abc' %}{% break %}{% endfor %}.", "."),
        ("{{ {'a': '<é>', 'b': [1]} | tojson }}", '{"a": "<é>", "b": [1]}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m(1) }}{{ m(2) }}", "[1][2]"),
        (
            "{% set ns = namespace(n=0) %}{% for x in 'ab' %}{% set ns.n = ns.n + 1 %}"
            "{% endfor %}{{ ns.n }}",
            "2",
        ),
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{{ 'a' * 3 + 'b' }}{{ 7 % 4 }}{{ 2 ** 5 }}", "aaab332"),
        ("{{ '%s-%03d' % ('x', 7) }}{{ '{}/{}'.format(1, 2) }}", "x-0071/2"),
        ("{{ ['b', 'a'] | sort | join(',') }}{{ ' x ' | trim }}{{ 'abc'[1:] }}", "a,bxbc"),
        ("{% for x in 'ab' recursive %}{{ loop.index }}{{ loop.last }}{% endfor %}", "1False2True"),
    ],
)
def test_what_templates_use_works(source: str, text: str) -> None:
    assert render(source) == text


def test_today_is_known() -> None:
    assert render("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().astimezone().year)


@given(st.text(), st.text())
def test_text_is_never_escaped_or_changed(one: str, other: str) -> None:
    assert render("{{ a ~ b }}{{ a + b }}", a=one, b=other) == (one + other) * 2


def test_a_template_can_refuse() -> None:
    with pytest.raises(jinja2.TemplateError, match="no system"):
        render("{{ raise_exception('no system') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% for i in range(9) %}{{ m(n + 1) }}{% endfor %}{% endmacro %}{{ m(0) }}",
        "{% for i in range(90000) recursive %}{{ loop(range(90000)) }}{% endfor %}",
    ],
)
def test_a_template_without_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "MAX_SECONDS", 0.2)
    with pytest.raises((TemplateTooSlow, RecursionError)):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ range(10 ** 9) }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'a'.center(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a' | indent(1000000000) }}",
        "{{ [1] | batch(1000000000, 0) | list }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(99) %}"
        "{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(99) %}"
        "{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ self.__init__.__globals__.keys() }}",
    ],
)
def test_a_template_cannot_take_all_memory_or_leave_the_sandbox(source: str) -> None:
    with pytest.raises(RENDER_ERRORS):
        render(source, messages=[])


@pytest.mark.parametrize("source", ["{% for %}", "{{", "{% endif %}", "{{ x | nofilter }}"])
def test_a_template_that_is_no_jinja_is_a_model_error(source: str) -> None:
    with pytest.raises(ModelError, match="not valid Jinja"):
        ChatTemplate(source, {})


def test_digits_in_a_text_are_no_format_widths() -> None:
    assert render("{{ x.strip() }}{{ x.split('-')[0] }}", x=" 12345678 ") == "12345678 12345678 "


def test_one_rendering_does_not_prolong_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "MAX_SECONDS", 0.3)
    endless = "{% if go %}" + "{% for a in range(1000) %}" * 4 + "{% endfor %}" * 4 + "{% endif %}"
    template = ChatTemplate(endless, {})
    ended: list[str] = []

    def run_away() -> None:
        try:
            template.render(go=True)
        except TemplateTooSlow:
            ended.append("too slow")

    thread = threading.Thread(target=run_away)
    thread.start()
    for _ in range(300):  # each with a time limit of its own, while the other runs
        template.render(go=False)
        thread.join(0.01)
        if not thread.is_alive():
            break
    assert ended == ["too slow"]

"""A model's chat template in Jinja's immutable sandbox, bounded in time and memory.

It gets what Hugging Face's `apply_chat_template` gives: `raise_exception`, `strftime_now`,
`tojson` without HTML escapes, loop controls, `{% generation %}`, trimmed blocks. Templates
come with model files, so loops are counted, and sizes given to functions are limited.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from msgspec import Struct

from maestrale.errors import ModelError

MAX_SECONDS = 5.0
MAX_NUMBER = 1_000_000  # as a width, count or other argument of a function
MAX_LENGTH = 100_000_000  # characters or items made by joining or repeating

# All that a template, given odd messages, is known to fail with.
RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class TemplateTooSlow(Exception):
    """A template ran longer than MAX_SECONDS."""


class TemplateRefuses(jinja2.TemplateError):
    """The template called `raise_exception`: it has no place for this conversation."""


@contextlib.contextmanager
def template_variables(variables: Mapping[str, bool | int | str]) -> Iterator[None]:
    """Templates rendered within know these, too: enable_thinking, say. Others ignore them."""
    token = _VARIABLES.set(variables)
    try:
        yield
    finally:
        _VARIABLES.reset(token)


_VARIABLES: ContextVar[Mapping[str, bool | int | str]] = ContextVar(
    "template_variables",
    default={},  # noqa: B039
)


class TemplateReads(Struct, frozen=True):
    """What a template's source looks at: `variables` that it is given, `fields` of values, and
    `words` that it compares something with.
    """

    variables: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str, constants: Mapping[str, str]) -> None:
        """`constants` are further names in the template: `bos_token`, `eos_token` ...

        Raises: ModelError when the source is no valid template.
        """
        self.source = source
        self._limit = threading.local()  # several threads may render at once
        environment = _Environment(self._tick)
        try:
            self._template = environment.from_string(source, globals=dict(constants))
            self.reads = _reads(environment, source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"The chat template is not valid Jinja: {error}") from error

    reads: TemplateReads
    """What its source says of what it is given."""

    def render(self, **names: Any) -> str:
        """Raises: jinja2.TemplateError and others of RENDER_ERRORS; TemplateTooSlow."""
        self._limit.ends = time.monotonic() + MAX_SECONDS
        return self._template.render(**{**_VARIABLES.get(), **names})

    def _tick(self) -> str:
        """Called on each turn of each loop and each call of a macro."""
        if time.monotonic() > self._limit.ends:
            raise TemplateTooSlow
        return ""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, tick: Callable[[], str]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self.filters = {name: _limited(filter_) for name, filter_ in self.filters.items()}
        self.filters["tojson"] = _tojson
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, __join=_join, __tick=tick
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Node = _JoinsCounted().visit(super()._parse(source, name, filename))
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            tick = nodes.Call(nodes.Name("__tick", "load"), [], [], None, None)
            # Each of the three has a body; Jinja's types only know what they have in common.
            body: list[nodes.Node] = getattr(node, "body")  # noqa: B009
            body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        assert isinstance(tree, nodes.Template)
        tree.set_environment(self)
        return tree

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_numbers(args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            if isinstance(left, str):
                _check_widths(left)
        elif operator == "**":
            _check_numbers((left, right), {})
            if isinstance(right, int | float) and abs(right) > 64:
                raise SecurityError("a power over 64 in a chat template")
        elif operator == "+":
            if isinstance(left, str) and isinstance(right, str):
                _check_length(len(left) + len(right))
        else:
            _check_length(_product(left, right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_widths(value.__self__)
        return wrapped


class _JoinsCounted(NodeTransformer):
    """Turns `a ~ b` into a call that looks at the length of what is made."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        join = nodes.Name("__join", "load")
        return nodes.Call(join, node.nodes, [], None, None).set_lineno(node.lineno)


class _Generation(Extension):
    """`{% generation %}`: marks the assistant's text for training; here it does nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _reads(environment: jinja2.Environment, source: str) -> TemplateReads:
    tree = environment.parse(source)
    fields = {node.attr for node in tree.find_all(nodes.Getattr)}
    fields |= _texts(node.arg for node in tree.find_all(nodes.Getitem))
    fields |= _texts(node.expr for node in tree.find_all(nodes.Compare))  # "field" in message
    words: set[str] = set()
    for node in tree.find_all(nodes.Compare):
        words |= _texts(node.expr.find_all(nodes.Const)) | _texts([node.expr])
        for operand in node.ops:
            words |= _texts([operand.expr]) | _texts(operand.expr.find_all(nodes.Const))
    return TemplateReads(
        frozenset(meta.find_undeclared_variables(tree)), frozenset(fields), frozenset(words)
    )


def _texts(found: Iterable[nodes.Node]) -> set[str]:
    return {
        node.value
        for node in found
        if isinstance(node, nodes.Const) and isinstance(node.value, str)
    }


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps the marks by which Jinja passes its context
    def limited(*args: Any, **kwargs: Any) -> Any:
        _check_numbers(args, kwargs)
        return function(*args, **kwargs)

    return limited


def _check_numbers(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise SecurityError(f"a number over {MAX_NUMBER} in a chat template")


def _check_widths(form: str) -> None:
    if re.search(r"\d{5,}", form):
        raise SecurityError("a format width over 9999 in a chat template")


def _join(*values: Any) -> str:
    texts = [str(value) for value in values]
    _check_length(sum(map(len, texts)))
    return "".join(texts)


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise SecurityError(f"a text over {MAX_LENGTH} characters in a chat template")


def _product(left: Any, right: Any) -> int:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(times, int):
            return len(value) * times
    return 0


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, **kwargs: Any
) -> str:
    _check_numbers((indent,), kwargs)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **kwargs)


def _raise_exception(message: str) -> None:
    raise TemplateRefuses(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)

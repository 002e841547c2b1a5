"""/docs lists what each dialect ignores and refuses, and the reference every route."""

from __future__ import annotations

import html

import pytest

from maestrale.api.dialect import Dialect
from maestrale.api.dialects import DIALECTS
from maestrale.api.openai.foreign_fields import IGNORED_FIELDS, UNSUPPORTED_FIELDS
from maestrale.api.openai.schemas import ChatRequest, CompletionRequest
from maestrale.api.operations.openapi import OPERATIONS, render
from serving import ROOT

PAGE = (ROOT / "docs" / "reference" / "api.md").read_text()


@pytest.mark.parametrize("dialect", DIALECTS.all, ids=lambda dialect: type(dialect).__name__)
def test_what_is_ignored_or_refused_is_listed_with_its_reason(dialect: Dialect) -> None:
    page = render("http://127.0.0.1:8000", [dialect.reference()])
    assert dialect.reference().notes
    for title, table in dialect.reference().notes.items():
        assert f"<h2>{title}</h2>" in page
        for name, reason in table.items():
            assert f"<code>{name}</code>" in page
            assert html.escape(reason) in page


def test_routes_are_listed() -> None:
    own = [each for dialect in DIALECTS.all for each in dialect.reference().operations]
    for operation in (*own, *OPERATIONS):
        assert f"`{operation.path.replace('model_id', 'id')}`" in PAGE


def test_the_tables_name_real_fields() -> None:
    fields = {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__}
    assert set(IGNORED_FIELDS) <= fields
    assert set(UNSUPPORTED_FIELDS) <= fields
    assert not set(IGNORED_FIELDS) & set(UNSUPPORTED_FIELDS)

"""docs/reference/api.md lists what the code ignores, in the code's words."""

from __future__ import annotations

import re

from maestrale.api.dialects import DIALECTS
from maestrale.api.openai.foreign_fields import IGNORED_FIELDS, UNSUPPORTED_FIELDS
from maestrale.api.openai.schemas import ChatRequest, CompletionRequest
from maestrale.api.operations.openapi import OPERATIONS
from serving import ROOT

PAGE = (ROOT / "docs" / "reference" / "api.md").read_text()


def test_ignored_fields_are_listed() -> None:
    section = PAGE.partition("## Fields without effect")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)) == IGNORED_FIELDS


def test_routes_are_listed() -> None:
    own = [each for dialect in DIALECTS.all for each in dialect.reference().operations]
    for operation in (*own, *OPERATIONS):
        assert f"`{operation.path.replace('model_id', 'id')}`" in PAGE


def test_the_tables_name_real_fields() -> None:
    fields = {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__}
    assert set(IGNORED_FIELDS) <= fields
    assert set(UNSUPPORTED_FIELDS) <= fields
    assert not set(IGNORED_FIELDS) & set(UNSUPPORTED_FIELDS)

"""Which dialects the server speaks: each has its line here, and its folder beside this file."""

from __future__ import annotations

from maestrale.api.anthropic.dialect import Anthropic
from maestrale.api.dialect import Dialects
from maestrale.api.openai.dialect import OpenAI
from maestrale.api.openai.responses.dialect import Responses

DIALECTS = Dialects(OpenAI(), Responses(), Anthropic())

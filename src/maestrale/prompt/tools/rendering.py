"""Renders the probe's conversations; what a template refuses is None."""

from __future__ import annotations

from typing import Any

from maestrale.prompt.jinja import RENDER_ERRORS, ChatTemplate, TemplateTooSlow
from maestrale.prompt.tools.probe import Render


def renderer(template: ChatTemplate) -> Render:
    """A function for `probe`, over one template."""

    def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str | None:
        try:
            return template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=False
            )
        except (*RENDER_ERRORS, TemplateTooSlow):
            return None

    return render

"""The scenarios of the Postman collection, as the chat page offers them.

A request that goes on from earlier answers becomes a question that follows the one before; any
other begins a conversation.
"""

from __future__ import annotations

import json
import re
from typing import Any

from maestrale.verify.scenarios import (
    ARTICLE,
    JSON_ONLY,
    QUESTIONS,
    ScenarioStep,
    description_of,
    steps_of,
)

FOLDERS = (QUESTIONS, ARTICLE, JSON_ONLY)
# Fields that the page has a control for; the others must have their default value.
SHOWN = {"temperature", "max_tokens", "seed", "random_seed", "response_format"}
DEFAULTS = {"top_p": 1, "safe_prompt": False}


def scenarios_json() -> bytes:
    """`[{title, text, starts: [{title, messages, settings, follow_ups: [{title, …}]}]}]`.

    `settings` has `temperature`, `max_tokens`, `seed` and `response_format` where given.
    """
    return json.dumps([_scenario(folder) for folder in FOLDERS]).encode()


def _scenario(folder: str) -> dict[str, Any]:
    starts: list[dict[str, Any]] = []
    seen: list[tuple[object, ...]] = []
    for step in steps_of(folder):
        asked = (step.messages, step.fields)
        if asked in seen:  # the same request again, to see the same answer
            continue
        seen.append(asked)
        shown = {"title": step.title, "settings": _settings(step)}
        if step.follows:
            starts[-1]["follow_ups"].append({**shown, "content": step.messages[-1]["content"]})
        else:
            starts.append({**shown, "messages": step.messages, "follow_ups": []})
    return {"title": folder, "text": _first_sentence(description_of(folder)), "starts": starts}


def _first_sentence(description: str) -> str:
    text = re.sub(r" \([^)]*\)", "", description).replace("`", "")
    return re.split(r"(?<=\.)\s", text)[0]


def _settings(step: ScenarioStep) -> dict[str, Any]:
    for name, value in step.fields.items():
        if name not in SHOWN and DEFAULTS.get(name) != value:
            raise ValueError(f"The chat page has no control for '{name}': {value!r}.")
    given = step.fields
    settings = {
        "temperature": given.get("temperature"),
        "max_tokens": given.get("max_tokens"),
        "seed": given.get("seed", given.get("random_seed")),
        "response_format": given.get("response_format"),
    }
    return {name: value for name, value in settings.items() if value is not None}

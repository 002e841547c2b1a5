"""The scenarios of the Postman collection, as the chat page offers them: derived, not rewritten.

A request whose earlier answers are the server's own (`{{summary}}` in the collection) becomes a
question that follows the one before; any other begins a conversation.
"""

from __future__ import annotations

import json
import re
from typing import Any

from maestrale.verify.collection import bundled_collection

FOLDERS = ("Simple questions", "Summarise an article, then ask about it", "JSON only")
# Fields that the page has a control for; the others must have their default value.
SHOWN = {"messages", "temperature", "max_tokens", "seed", "random_seed", "response_format"}
DEFAULTS = {"model": "", "top_p": 1, "stream": False, "safe_prompt": False}
_VARIABLE = re.compile(r"\{\{(\w+)\}\}")
_OWN_ANSWER = re.compile(r"(?<=: )\{\{\w+\}\}")


def scenarios_json() -> bytes:
    """`[{title, text, starts: [{title, messages, settings, follow_ups: [{title, …}]}]}]`.

    `settings` has `temperature`, `max_tokens`, `seed` and `response_format` where given.
    """
    collection = json.loads(bundled_collection().read_text())
    values = {each["key"]: each["value"] for each in collection.get("variable", [])}
    folders = {item["name"]: item for item in collection["item"]}
    return json.dumps([_scenario(folders[name], values) for name in FOLDERS]).encode()


def _scenario(folder: dict[str, Any], values: dict[str, str]) -> dict[str, Any]:
    starts: list[dict[str, Any]] = []
    seen: list[dict[str, Any]] = []
    for item in folder["item"]:
        body = _body(item["request"]["body"]["raw"], values)
        if body in seen:  # the same request again, to see the same answer
            continue
        seen.append(body)
        messages = body["messages"]
        step = {"title": item["name"], "settings": _settings(body)}
        if any(message["content"] is None for message in messages):
            starts[-1]["follow_ups"].append({**step, "content": messages[-1]["content"]})
        else:
            starts.append({**step, "messages": messages, "follow_ups": []})
    return {"title": folder["name"], "text": _first_sentence(folder), "starts": starts}


def _first_sentence(folder: dict[str, Any]) -> str:
    text = re.sub(r" \([^)]*\)", "", folder.get("description", "")).replace("`", "")
    return re.split(r"(?<=\.)\s", text)[0]


def _body(raw: str, values: dict[str, str]) -> dict[str, Any]:
    """A request's body, with the collection's variables in it and null for earlier answers."""
    raw = _OWN_ANSWER.sub("null", raw)
    body: dict[str, Any] = json.loads(_VARIABLE.sub(lambda found: values.get(found[1], ""), raw))
    for name, value in body.items():
        if name not in SHOWN and DEFAULTS.get(name) != value:
            raise ValueError(f"The chat page has no control for '{name}': {value!r}.")
    return body


def _settings(body: dict[str, Any]) -> dict[str, Any]:
    settings = {
        "temperature": body.get("temperature"),
        "max_tokens": body.get("max_tokens"),
        "seed": body.get("seed", body.get("random_seed")),
        "response_format": body.get("response_format"),
    }
    return {name: value for name, value in settings.items() if value is not None}

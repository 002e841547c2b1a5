"""A conversation and how its answers are asked for: what a request is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maestrale.errors import CannotChat

ROLES = ("user", "assistant")


@dataclass
class TerminalConversation:
    """Messages so far, and the parameters of the next request; None: the server's default.

    `schema` is what answers must fit; {} stands for any JSON object.
    """

    model: str
    system: str | None = None
    schema: dict[str, Any] | None = None
    seed: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        """The request for the next answer, streamed, with usage."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *self.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name in ("seed", "temperature", "max_tokens"):
            if (value := getattr(self, name)) is not None:
                body[name] = value
        if self.schema is not None:
            named = {"name": "answer", "schema": self.schema}
            body["response_format"] = (
                {"type": "json_schema", "json_schema": named}
                if self.schema
                else {"type": "json_object"}
            )
        return body

    def ask(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def take_back(self) -> str | None:
        """Forget the last question and what followed. Returns it, or None if there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index]["role"] == "user":
                text = self.messages[index]["content"]
                del self.messages[index:]
                return text
        return None

    def save(self, path: Path) -> None:
        """Write it as the body of a request, which curl can send. Raises: CannotChat."""
        try:
            body = {**self.body(), "stream": False}
            del body["stream_options"]
            text = json.dumps(body, indent=2, ensure_ascii=False) + "\n"
            path.expanduser().write_text(text, encoding="utf-8")
        except OSError as error:
            raise CannotChat(f"{path} can't be written: {error.strerror}.") from error
        except (RuntimeError, ValueError) as error:  # a home of nobody, a null character
            raise CannotChat(f"{path} can't be written: {error}.") from error

    def load(self, path: Path) -> None:
        """Go on with messages that `save` wrote. Raises: CannotChat; nothing is changed then."""
        try:
            messages = json.loads(path.expanduser().read_text("utf-8"))["messages"]
            read = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
            json.dumps(read, ensure_ascii=False).encode()  # no half of a character
        except OSError as error:
            raise CannotChat(f"{path} can't be read: {error.strerror}.") from error
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            raise CannotChat(f"{path} holds no conversation that /save wrote.") from error
        system = [m["content"] for m in read if m["role"] == "system"]
        self.system = "\n\n".join(system) or None
        self.messages = [m for m in read if m["role"] in ROLES]


def read_schema(text: str) -> dict[str, Any]:
    """A JSON schema from text that is one, or names a file that holds one. Raises: CannotChat."""
    source = text.strip()
    if not source.startswith("{"):
        try:
            source = Path(source).expanduser().read_text("utf-8")
        except (OSError, ValueError, RuntimeError) as error:
            raise CannotChat(
                f"{text.strip()[:80]!r} is neither a JSON schema nor a file that can be read."
            ) from error
    try:
        schema = json.loads(source)
    except RecursionError as error:
        raise CannotChat("The schema is nested too deep.") from error
    except ValueError as error:
        raise CannotChat(f"The schema is no JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise CannotChat("A JSON schema is an object: {...}.")
    return schema

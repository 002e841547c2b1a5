"""What tools a request has, and what a tool-call format is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from maestrale.prompt.messages import Tool, ToolCall
from maestrale.prompt.tools.reading import CallReader, ToolCallParser

MAX_CALLS = 16  # parallel calls that a grammar allows in one answer


class ToolSpec(Struct, frozen=True, kw_only=True):
    """One tool of a request.

    `definition` goes into the prompt, as the client wrote it; `parameters` is the JSON schema
    of its arguments, as text; `strict` asks that they satisfy it even when the model is free
    not to call.
    """

    name: str
    definition: Tool
    parameters: str
    strict: bool = False


class ToolUse(Struct, frozen=True, kw_only=True):
    """The tools of a request, and what the model may or must do with them.

    All `tools` are in the prompt; those named in `callable` may be called (at least one).
    """

    tools: tuple[ToolSpec, ...]
    callable: tuple[str, ...]
    required: bool = False
    parallel: bool = True

    @property
    def definitions(self) -> list[Tool]:
        return [tool.definition for tool in self.tools]

    @property
    def candidates(self) -> list[ToolSpec]:
        """The tools that may be called."""
        return [tool for tool in self.tools if tool.name in self.callable]

    def reader(self, key: bytes) -> CallReader:
        """Reads the calls of one answer; `key` is what their ids follow from."""
        schemas = {tool.name: tool.parameters for tool in self.candidates}
        return CallReader(self.callable, key, schemas=schemas, required=self.required)


class CallSchema(Struct, frozen=True):
    """A tool in a grammar: its name, and the schema that its arguments must satisfy."""

    name: str
    schema: dict[str, Any]


class Rules(Struct, frozen=True):
    """Lark rules; `schemas` are further ones, (rule, JSON schema document)."""

    text: str
    schemas: tuple[tuple[str, str], ...] = ()


class ToolFormat(Protocol):
    """How a family of models writes tool calls."""

    name: str
    shown: Mapping[int, str]
    """Control tokens that mean something to the parser, and the text they are spelled as."""

    def parser(self, reader: CallReader, *, parallel: bool) -> ToolCallParser: ...

    def rules(self, tools: Sequence[CallSchema], most: int, *, text: bool) -> Rules:
        """Rules in which `calls` is one to `most` calls of these tools.

        With `text`, `free` is text without calls, or text and then calls.
        Raises: InvalidRequest for a schema that can't be enforced in this format.
        """

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Earlier calls as the model would have written them."""

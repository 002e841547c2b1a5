"""What can be typed behind a slash. Each command is one function; its docstring is its help."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from maestrale.errors import CannotChat
from maestrale.printable import brief
from maestrale.terminal.conversation import TerminalConversation, read_schema

N = TypeVar("N", int, float)
OFF = ("off", "none", "-")
MOST_NAMES = 100  # of models that are listed


class LeaveChat(Exception):
    """The user wants to go."""


class Again(Exception):
    """The last question shall be answered anew."""


class Commands:
    """The commands of one conversation. `run` gives what to tell the user."""

    def __init__(self, conversation: TerminalConversation, models: list[str]) -> None:
        self._conversation = conversation
        self._models = models
        self._commands: dict[str, Callable[[str], str]] = {
            name.removeprefix("_do_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }
        aliases = {"?": "help", "clear": "reset", "new": "reset", "exit": "quit", "bye": "quit",
                   "max_tokens": "max", "temp": "temperature", "regenerate": "retry"}  # fmt: skip
        self._all = self._commands | {name: self._commands[to] for name, to in aliases.items()}

    @property
    def names(self) -> list[str]:
        """What the tab key completes."""
        return [f"/{name}" for name in self._commands]

    def run(self, line: str) -> str:
        """Run `/name arguments`. Raises: CannotChat; Leave and Again for what the caller does."""
        name, _, arguments = line.removeprefix("/").partition(" ")
        command = self._all.get(name.strip().lower())
        if command is None:
            close = difflib.get_close_matches(name, self._all, n=1)
            hint = f" Did you mean /{close[0]}?" if close else ""
            raise CannotChat(
                f"There is no command /{name}.{hint} /help lists them; "
                "a message that begins with a slash takes two: //."
            )
        return command(arguments.strip())

    def _do_help(self, arguments: str) -> str:
        """|this list"""
        lines = []
        for name, command in self._commands.items():
            usage, _, text = (command.__doc__ or "").partition("|")
            lines.append(f"  {f'/{name} {usage}'.rstrip():<29} {text}")
        return "\n".join([
            *lines,
            '  """                           begin and end a message of several lines',
            "  Ctrl-C                        stop the answer; Ctrl-D leaves",
        ])  # fmt: skip

    def _do_system(self, arguments: str) -> str:
        """[TEXT or off]|say what the model shall be; alone: show it"""
        if arguments:
            self._conversation.system = None if arguments in OFF else arguments
        system = self._conversation.system
        return f"system prompt: {system}" if system else "no system prompt"

    def _do_json(self, arguments: str) -> str:
        """[SCHEMA, FILE or off]|answers in JSON, in the shape of a schema if one is given"""
        if arguments in OFF:
            self._conversation.schema = None
            return "answers are text"
        self._conversation.schema = read_schema(arguments) if arguments else {}
        if not self._conversation.schema:
            return "answers are JSON objects; /json off ends that"
        return f"answers fit {json.dumps(self._conversation.schema)[:200]}; /json off ends that"

    def _do_seed(self, arguments: str) -> str:
        """[N or off]|the same seed gives the same answer"""
        if arguments:
            self._conversation.seed = _number(arguments, int, "a seed", 0, 2**63 - 1)
        seed = self._conversation.seed
        return "a new seed for each answer" if seed is None else f"seed {seed} for each answer"

    def _do_temperature(self, arguments: str) -> str:
        """[T or off]|0 takes the likeliest token, 2 is wild"""
        if arguments:
            self._conversation.temperature = _number(arguments, float, "a temperature", 0, 2)
        value = self._conversation.temperature
        return "the server's temperature" if value is None else f"temperature {value:g}"

    def _do_max(self, arguments: str) -> str:
        """[N or off]|longest answer, in tokens"""
        if arguments:
            self._conversation.max_tokens = _number(arguments, int, "a number", 1, 10**9)
        value = self._conversation.max_tokens
        return "answers as long as they get" if value is None else f"at most {value} tokens"

    def _do_model(self, arguments: str) -> str:
        """[NAME]|ask another model; alone: list them"""
        if arguments:
            self._conversation.model = chosen_model(arguments, self._models)
        shown = [
            f"{'*' if name == self._conversation.model else ' '} {brief(name, 200)}"
            for name in self._models[:MOST_NAMES]
        ]
        return "\n".join([*shown, *_others(self._models)])

    def _do_reset(self, arguments: str) -> str:
        """|begin anew; system prompt and settings stay"""
        self._conversation.messages.clear()
        return "a new conversation"

    def _do_retry(self, arguments: str) -> str:
        """|answer the last question again"""
        raise Again

    def _do_undo(self, arguments: str) -> str:
        """|forget the last question and its answer"""
        if self._conversation.take_back() is None:
            raise CannotChat("There is nothing to take back.")
        return "forgotten"

    def _do_history(self, arguments: str) -> str:
        """|show the conversation"""
        system = self._conversation.system
        told = [f"system: {system}"] if system else []
        told += [f"{each['role']}: {each['content']}" for each in self._conversation.messages]
        return "\n".join(told) or "nothing was said yet"

    def _do_save(self, arguments: str) -> str:
        """FILE|write the conversation, as the body of a request"""
        if not arguments:
            raise CannotChat("/save needs the name of a file.")
        path = Path(arguments)
        self._conversation.save(path)
        return f"saved in {path}"

    def _do_load(self, arguments: str) -> str:
        """FILE|go on with a saved conversation"""
        if not arguments:
            raise CannotChat("/load needs the name of a file.")
        self._conversation.load(Path(arguments))
        return f"{len(self._conversation.messages)} messages"

    def _do_quit(self, arguments: str) -> str:
        """|leave (or Ctrl-D)"""
        raise LeaveChat


def chosen_model(name: str, models: list[str]) -> str:
    """Raises: CannotChat when the server doesn't have it."""
    if name not in models:
        shown = [brief(one, 200) for one in models[:MOST_NAMES]]
        raise CannotChat(
            f"There is no model {name!r} here; the server has "
            f"{', '.join([*shown, *_others(models)])}."
        )
    return name


def _others(models: list[str]) -> list[str]:
    """How many names are not shown, if any."""
    return [f"and {len(models) - MOST_NAMES} more"] if len(models) > MOST_NAMES else []


def _number(text: str, kind: Callable[[str], N], what: str, least: float, most: float) -> N | None:
    """None for `off`. Raises: CannotChat."""
    if text in OFF:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise CannotChat(f"{text[:40]!r} is not {what} from {least} to {most}, or off.")
    return value

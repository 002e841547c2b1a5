"""`maestrale chat`: read a message, stream its answer, until the user leaves."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from maestrale.errors import CannotChat
from maestrale.printable import brief
from maestrale.terminal.commands import Again, Commands, LeaveChat
from maestrale.terminal.conversation import TerminalConversation
from maestrale.terminal.screen import Screen, line_editing
from maestrale.terminal.server import AnswerOutcome, ChatServer


class ChatSession:
    """One conversation on one screen with one server."""

    def __init__(
        self,
        server: ChatServer,
        conversation: TerminalConversation,
        models: list[str],
        screen: Screen,
    ) -> None:
        self._server = server
        self._conversation = conversation
        self._commands = Commands(conversation, models)
        self._screen = screen
        self._unanswered: str | None = None  # the last question, if its answer failed

    def talk(self, history: Path | None) -> int:
        """Until the end of the input. Returns the exit code: 1 when piped input met an error."""
        screen = self._screen
        model = brief(self._conversation.model, 200)
        screen.note(f"{model} at {self._server.url}. /help for help, Ctrl-D to leave.")
        if not screen.typed:
            return self._read_all()
        with line_editing(history, self._commands.names):
            return self._read_all()

    def _read_all(self) -> int:
        for text in self._screen.messages():
            try:
                if not self._take(text) and not self._screen.typed:
                    return 1
            except LeaveChat:
                return 0
            except KeyboardInterrupt:  # twice in a row, or between two pieces
                self._screen.end_answer()
        return 0

    def ask(self, text: str) -> bool:
        """Send a message and show the answer. Returns whether that went well."""
        self._conversation.ask(text)
        outcome = AnswerOutcome()
        stopped, failure = False, ""
        pieces = self._server.stream(self._conversation.body(), outcome, self._screen.lost)
        try:
            with closing(pieces):  # type: ignore[type-var]
                for piece in pieces:
                    self._screen.thought(piece.thought)
                    self._screen.piece(piece.text)
        except KeyboardInterrupt:
            stopped = True
            self._screen.interrupted()
        except CannotChat as error:
            failure = str(error)
        self._screen.end_answer()
        said = "".join(outcome.text)
        if said and not failure:
            self._conversation.answer(said)
        elif not stopped or not said:
            self._unanswered = self._conversation.take_back()
        if failure:
            self._screen.error(failure)
            return False
        self._screen.note(_summary(outcome, self._conversation.max_tokens, stopped=stopped))
        return True

    def _take(self, text: str) -> bool:
        """A message or a command. Returns whether that went well. Raises: Leave."""
        if text.startswith("//"):
            return self.ask(text[1:])
        if not text.startswith("/"):
            return self.ask(text)
        try:
            told = self._commands.run(text)
        except Again:
            question = self._unanswered or self._conversation.take_back()
            self._unanswered = None
            if question is None:
                self._screen.error("There is no question to answer again.")
                return False
            return self.ask(question)
        except CannotChat as error:
            self._screen.error(str(error))
            return False
        self._screen.note(told)
        return True


def _summary(outcome: AnswerOutcome, max_tokens: int | None, *, stopped: bool) -> str:
    """One line below the answer: how it ended, how fast it came."""
    parts = []
    if stopped:
        parts.append("stopped")
    elif outcome.finish_reason == "length":
        parts.append("cut off by /max" if max_tokens else "cut off: the context is full (/reset)")
    if outcome.completion_tokens:
        parts.append(f"{outcome.completion_tokens} tokens")
    if outcome.first_token is not None:
        parts.append(f"first after {outcome.first_token:.2f} s")
        decode = outcome.seconds - outcome.first_token
        if outcome.completion_tokens > 1 and decode > 0:
            parts.append(f"{(outcome.completion_tokens - 1) / decode:.1f} tokens/s")
    if outcome.seed:
        parts.append(f"seed {brief(outcome.seed, 40)}")
    return ", ".join(parts)

"""Where the user types and reads: a terminal with line editing, or pipes.

The answer goes to stdout and nothing else does, except on a terminal, where everything is for
the same pair of eyes. Notes and errors go to stderr. Whatever is shown went through the cleaner
first, in a pipe too: its other end is mostly a terminal after all.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from maestrale.printable import printable

PROMPT, MORE = "> ", ". "
QUOTES = '"""'
HISTORY_LINES = 1000
DIM, RED, PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[0m"


class Screen:
    """Reads messages, shows answers and notes."""

    def __init__(self, *, colour: bool = True) -> None:
        # What is no UTF-8, or can't be shown here, is replaced: it must not end the conversation.
        for stream, encoding in ((sys.stdin, "utf-8"), (sys.stdout, None), (sys.stderr, None)):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding=encoding, errors="replace")
        self.typed = sys.stdin.isatty()
        self._shown = sys.stdout.isatty()
        self._colour = colour and sys.stderr.isatty()
        self._column_zero = True
        self._thinking = False
        self._waited_for = ""

    def messages(self) -> Iterator[str]:
        '''What the user sends, message by message, up to the end of the input.

        A message is a line, or what stands between two `"""`. Ctrl-C drops what was begun.
        '''
        lines: list[str] = []
        within = False
        while True:
            try:
                line = self._read(MORE if within else PROMPT)
            except EOFError:
                if within and lines:
                    yield "\n".join(lines)
                if self.typed:
                    self.note("")
                return
            except KeyboardInterrupt:
                lines, within = [], False
                self.note("")
                self.note("Ctrl-D or /quit leaves.")
                continue
            if not within and line.lstrip().startswith(QUOTES):
                within, line = True, line.lstrip()[len(QUOTES) :]
                lines = []
            if within:
                text, closed, _ = line.partition(QUOTES)
                lines.append(text)
                if not closed:
                    continue
                within, line = False, "\n".join(lines).strip("\n")
            if line.strip():
                yield line

    def thought(self, text: str) -> None:
        """A part of what the model thinks: dimmed, and only where somebody types."""
        if not text or not self.typed:
            return
        begins, self._thinking = not self._thinking, True
        text = printable(text)
        dim, plain = (DIM, PLAIN) if self._colour else ("(" if begins else "", "")
        sys.stderr.write(f"{dim}{text}{plain}")
        sys.stderr.flush()

    def _end_thought(self) -> None:
        """What comes next begins below it."""
        if self._thinking:
            self._thinking = False
            sys.stderr.write("\n\n" if self._colour else ")\n\n")
            sys.stderr.flush()

    def piece(self, text: str) -> None:
        """A part of the answer."""
        if not text:
            return
        self._end_thought()
        sys.stdout.write(printable(text))
        sys.stdout.flush()
        self._column_zero = text.endswith("\n")

    def end_answer(self) -> None:
        self._end_thought()
        if not self._column_zero:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._column_zero = True

    def interrupted(self) -> None:
        """The terminal has shown ^C where the cursor stood."""
        self._column_zero = self._column_zero and not self._shown

    def note(self, text: str) -> None:
        """A remark of ours; only where somebody types."""
        if self.typed:
            self._tell(text, DIM)

    def error(self, text: str) -> None:
        self._tell(text, RED)

    def waiting(self, text: str) -> None:
        """Why nothing happens yet: a line that is written over; in a pipe one for each reason."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{printable(text)}")
            sys.stderr.flush()
        elif text != self._waited_for:
            self._waited_for = text
            self._tell(text, DIM)

    def lost(self, text: str) -> None:
        """Why the answer pauses: once, below what came of it."""
        if text != self._waited_for:
            self._waited_for = text
            self.end_answer()
            self._tell(text, DIM)

    def waited(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _tell(self, text: str, colour: str) -> None:
        text = printable(text)
        if self._colour and text:
            text = f"{colour}{text}{PLAIN}"
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def _read(self, prompt: str) -> str:
        """A line. Raises: EOFError, KeyboardInterrupt."""
        if self.typed and self._shown:
            return input(prompt)  # with readline's editing and history, where it is imported
        if self.typed:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


@contextlib.contextmanager
def line_editing(history: Path | None, commands: Sequence[str]) -> Iterator[None]:
    """Arrow keys, history across sessions in `history`, and completion of commands."""
    try:
        import readline
    except ImportError:  # a Python without it: plain lines
        yield
        return
    readline.set_completer_delims("")
    readline.set_completer(lambda text, state: _completion(text, state, commands))
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    readline.set_history_length(HISTORY_LINES)
    if history is not None:
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
    try:
        yield
    finally:
        if history is not None:
            with contextlib.suppress(OSError):
                history.parent.mkdir(parents=True, exist_ok=True)
                history.touch(mode=0o600)
                readline.write_history_file(history)


def _completion(text: str, state: int, commands: Sequence[str]) -> str | None:
    fitting = [name for name in commands if name.startswith(text)] if text else []
    return f"{fitting[state]} " if state < len(fitting) else None

"""The console that tables and progress are shown on: all of it goes through the cleaner."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from maestrale.printable import printable


class CleanConsole(Console):
    """rich's console, for text from outside: its own escape sequences only."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of what is to be shown, cleaned. rich calls it for every part."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)

    def on_broken_pipe(self) -> None:
        """Leave it to the command line, where rich would end the process as failed."""
        self.quiet = True
        raise BrokenPipeError

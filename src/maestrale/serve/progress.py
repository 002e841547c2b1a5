"""Shows how far the model's preparation is: a moving line on a terminal, log lines elsewhere.

What takes long is never silent: where nobody sees a line move, the log tells every ten seconds
that it goes on, and how far it is, where that can be known.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from maestrale.logs import LOGGER

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


LINE_EVERY = 10.0  # seconds between two lines of one phase


class StartProgress:
    """`update` may be called from any thread. `tell` gets each phase, for /health."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._phase = self._text = ""
        self._logged = 0.0
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._since = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> StartProgress:
        if sys.stderr.isatty():
            from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            from maestrale.console import CleanConsole

            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                console=CleanConsole(stderr=True),
                transient=True,
            )
            self._bar.start()
        else:
            threading.Thread(target=self._go_on_telling, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()

    def update(self, text: str, fraction: float | None) -> None:
        """`text` is one short sentence, or a phase, a colon and its detail (bytes, speed ...).

        `fraction` is 0 to 1, None where it can't be known.
        """
        phase = text.partition(": ")[0]
        if text != self._text:
            self._tell(text)
        if self._bar is None:
            self._log(phase, text, fraction)
        else:
            self._show(phase, text, fraction)
        if phase != self._phase:
            self._since = time.monotonic()
        self._phase, self._text = phase, text

    def _log(self, phase: str, text: str, fraction: float | None) -> None:
        now = time.monotonic()
        soon = fraction != 1.0 and now - self._logged < LINE_EVERY
        if phase == self._phase and (text == self._text or soon):
            return
        self._logged = now
        LOGGER.info("%s", text)

    def _show(self, phase: str, text: str, fraction: float | None) -> None:
        assert self._bar is not None
        if phase != self._phase or self._task is None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(text, total=None)
        self._bar.update(self._task, description=text)
        if fraction is not None:
            self._bar.update(self._task, total=1.0, completed=fraction)

    def _go_on_telling(self) -> None:
        """In a phase that reports nothing, the time passes at least."""
        while not self._over.wait(LINE_EVERY):
            now = time.monotonic()
            if self._text and now - self._logged >= LINE_EVERY:
                self._logged = now
                LOGGER.info("%s (%.0f s so far)", self._text, now - self._since)

"""Shows how far the model's preparation is: a moving line on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from maestrale.logs import LOGGER

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Progress:
    """`update` may be called from any thread. `tell` gets each phase, for /health."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._phase = ""
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, phase: str, fraction: float | None) -> None:
        """`phase` is one short sentence; `fraction` 0 to 1, None where it can't be known."""
        if phase != self._phase:
            self._phase = phase
            self._tell(phase)
            if self._bar is None:
                LOGGER.info("%s", phase)
            else:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(phase, total=None)
        if self._bar is not None and self._task is not None and fraction is not None:
            self._bar.update(self._task, total=1.0, completed=fraction)

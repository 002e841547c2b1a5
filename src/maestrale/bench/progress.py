"""What the terminal shows while a load runs: how far it is, and how it goes so far."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from maestrale.bench.load import Run

_EVERY = 10.0  # seconds between lines where there is no terminal


class BenchProgress:
    """A bar in a terminal, a line now and then anywhere else."""

    def __init__(self, console: Console, points: int) -> None:
        self._console = console
        self._points = points
        self._number = 0
        self._told = 0.0
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bars.add_task("warming up", total=None, state="")

    def __enter__(self) -> BenchProgress:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def begin(self, load: str) -> None:
        """The next point begins."""
        self._number += 1
        self._told = 0.0
        what = f"{load} ({self._number} of {self._points})"
        self._bars.reset(self._task, description=what, total=1.0, state="")

    def watch(self, run: Run) -> None:
        """Show how the run goes."""
        state = self._state(run)
        self._bars.update(self._task, completed=share_done(run), state=state)
        if not self._console.is_terminal and run.elapsed - self._told >= _EVERY:
            self._told = run.elapsed
            self._console.print(
                f"{run.point}: {run.elapsed:.0f} s, {state}", highlight=False, soft_wrap=True
            )

    @staticmethod
    def _state(run: Run) -> str:
        failed = sum(record.exchange.error is not None for record in run.records)
        tokens = sum(
            record.exchange.usage.completion_tokens or record.exchange.usage.prompt_tokens
            for record in run.records
            if record.exchange.usage
        )
        speed = tokens / run.elapsed if run.elapsed > 0 else 0.0
        errors = f", {failed} failed" if failed else ""
        return f"{len(run.records)} done, {run.running} running{errors}, {speed:.0f} tok/s"


def share_done(run: Run) -> float:
    """How far a run is, 0 to 1: in time or in requests, whichever is nearer its end."""
    point = run.point
    by_time = run.elapsed / point.duration if point.duration else 0.0
    by_count = len(run.records) / point.requests if point.requests else 0.0
    return min(1.0, max(by_time, by_count))

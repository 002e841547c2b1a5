"""The table in the terminal, live while the collection runs, and what failed below it."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maestrale.verify.causes import cause_of, cause_of_problem
from maestrale.verify.collection import CollectionRequest
from maestrale.verify.results import RequestResult, RunResult


class RunProgress:
    """Shows each request as it is run: a live table in a terminal, lines anywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done: list[RequestResult] = []
        self._running: CollectionRequest | None = None
        self._since = 0.0  # when the running request began
        self._live = Live(
            console=console,
            get_renderable=self._table,
            refresh_per_second=2,
            vertical_overflow="visible",
        )

    def __enter__(self) -> RunProgress:
        if self._console.is_terminal:
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running = None
        if self._console.is_terminal:
            self._live.__exit__(kind, error, trace)

    def started(self, request: CollectionRequest) -> None:
        self._running, self._since = request, time.monotonic()
        self._refresh()

    def finished(self, result: RequestResult) -> None:
        self._done.append(result)
        self._running = None
        if self._console.is_terminal:
            self._refresh()
            return
        cells = [cell.plain for cell in _cells(result)]
        line = f"{cells[0]}: status {cells[1]}, first token {cells[2]}, tokens/s {cells[3]}, "
        self._console.print(line + cells[4], markup=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        if self._console.is_terminal:
            self._live.refresh()

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("request", overflow="fold")
        for heading in ("status", "first token", "tokens/s"):
            table.add_column(heading, justify="right")
        table.add_column("checks")
        folder = None
        for result in self._done:
            if result.folder != folder:
                folder = result.folder
                table.add_row(Text(folder, style="bold cyan"))
            name, *others = _cells(result)
            table.add_row(Text("  ") + Text(result.name, style=name.style), *others)
        running = self._running
        if running is not None:
            if running.folder != folder:
                table.add_row(Text(running.folder, style="bold cyan"))
            seconds = Text(f"{time.monotonic() - self._since:.0f} s", style="dim")
            table.add_row(Text(f"  {running.name}", style="dim"), Text("…", style="dim"), seconds)
        return table


def _cells(result: RequestResult) -> list[Text]:
    status = Text("-" if result.status is None else str(result.status))
    first = "-" if result.first_token is None else f"{result.first_token:.2f} s"
    speed = "-" if result.tokens_per_second is None else f"{result.tokens_per_second:.1f}"
    if result.skipped:
        checks = Text("skipped", style="yellow")
    else:
        checks = Text(f"{result.passed} passed", style="green")
        if result.failed:
            checks.append(f", {result.failed} failed", style="bold red")
        if result.skips:
            checks.append(f", {result.skips} skipped", style="yellow")
    return [Text(result.location), status, Text(first), Text(speed), checks]


def print_failures(console: Console, run: RunResult) -> None:
    """Each failing check: what was expected, what came, and what usually causes it."""
    for result in run.requests:
        if not result.failed:
            continue
        console.print()
        console.print(Text(f"✗ {result.location}", style="bold red"))
        if result.problem is not None:
            _print_pair(console, "what came", result.problem)
            _print_pair(console, "usual cause", cause_of_problem(result.problem))
        causes = []
        for assertion in result.assertions:
            if assertion.passed or assertion.failure is None:
                continue
            _print_pair(console, "check", assertion.name)
            _print_pair(console, "expected", assertion.failure.expected)
            _print_pair(console, "what came", assertion.failure.actual)
            _print_pair(console, "message", assertion.failure.message)
            causes.append(cause_of(result, assertion))
        for cause in dict.fromkeys(cause for cause in causes if cause):
            _print_pair(console, "usual cause", cause)
        if result.body:
            _print_pair(console, "the answer", _shortened(result.body, 300))
    skips = [
        f"{result.location}: {one.name}"
        for result in run.requests
        for one in result.assertions
        if one.skipped
    ]
    if skips:
        console.print()
        for skip in skips:
            console.print(Text(f"- skipped: {skip}", style="yellow"))


def _shortened(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}…"


def _print_pair(console: Console, label: str, value: str | None) -> None:
    if value is not None:
        line = Text(f"{label}: ", style="dim").append(_shortened(value, 500), style="default")
        console.print(Padding(line, (0, 0, 0, 4)))

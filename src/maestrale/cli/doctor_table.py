"""doctor's findings as a table for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from maestrale.console import CleanConsole
from maestrale.machine.doctor import Finding
from maestrale.machine.facts import MachineFacts

PIPE_WIDTH = 110  # columns where there is no terminal to ask
_WIDTHS = (7, 17)  # columns of the state and of the check's name
_TONES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def show(name: str, facts: MachineFacts, findings: Sequence[Finding], setup: str) -> None:
    """Print each finding with its remedy under it, then what to do first."""
    console = CleanConsole(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    here = name == "this machine"
    console.print(Text("This machine" if here else name, style="bold"))
    for finding in findings:
        _print_finding(console, finding)
    console.print()
    if facts.unanswered:
        names = ", ".join(facts.unanswered)
        console.print(Text(f"No answer in time, so not known: {names}.", style="yellow"))
    console.print(_closing(findings, setup), soft_wrap=True)
    if not here and any(one.command not in ("", setup) for one in findings):
        console.print("The other commands are for that machine.")


def _print_finding(console: Console, finding: Finding) -> None:
    ascii_only = "utf" not in console.encoding.lower()
    room = console.width - sum(_WIDTHS) - 4
    lines = [Text(_spelled(finding.what, ascii_only))]
    remedy, command = finding.remedy, _spelled(finding.command, ascii_only)
    if command:
        remedy = f"{remedy.rstrip('.')}:"
    if remedy:
        lines.append(Text(_spelled(remedy, ascii_only), style="cyan"))
    if command and len(lines[-1]) + 1 + len(command) <= room:
        lines[-1].append(f" {command}", style="bold")
        command = ""
    row = Table.grid(padding=(0, 2, 0, 0))
    for width in _WIDTHS:
        row.add_column(width=width)
    row.add_column(overflow="fold")
    state = Text(finding.state, style=_TONES[finding.state])
    row.add_row(state, Text(finding.check), Group(*lines))
    console.print(row)
    if command:
        # On a line of its own, which the terminal may wrap: copied, it is still one line.
        indent = " " * max(0, min(sum(_WIDTHS) + 4, console.width - len(command)))
        console.print(Text(f"{indent}{command}", style="bold cyan"), soft_wrap=True)


def _closing(findings: Sequence[Finding], setup: str) -> Text:
    problems = [one for one in findings if one.state == "problem"]
    warnings = [one for one in findings if one.state == "warning"]
    if not problems and not warnings:
        return Text("Nothing is missing.", style="bold green")
    counts = [_count(problems, "problem"), _count(warnings, "warning")]
    text = Text(
        ", ".join(count for count in counts if count) + ".",
        style="bold red" if problems else "bold yellow",
    )
    cured = [one.check for one in findings if one.command == setup]
    if cured:
        text.append(f" {setup}", style="bold cyan")
        text.append(f" takes care of: {', '.join(cured)}.", style="default not bold")
    return text


def _count(findings: Sequence[Finding], word: str) -> str:
    if not findings:
        return ""
    return f"{len(findings)} {word}{'s' if len(findings) > 1 else ''}"


def _spelled(text: str, ascii_only: bool) -> str:
    """What the terminal's encoding lacks is shown as a question mark."""
    return text.encode("ascii", "replace").decode("ascii") if ascii_only else text

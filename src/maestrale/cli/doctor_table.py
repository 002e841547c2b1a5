"""doctor's findings as a table for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from maestrale.machine.doctor import Finding
from maestrale.machine.facts import MachineFacts

PIPE_WIDTH = 110  # columns where there is no terminal to ask
_TONES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def show(name: str, facts: MachineFacts, findings: Sequence[Finding], setup: str) -> None:
    """Print each finding with its remedy under it, then what to do first."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(Text(name[:1].upper() + name[1:], style="bold"))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        tone = _TONES[finding.state]
        table.add_row(
            Text(finding.state, style=tone),
            Text(finding.check),
            _account(finding, _plain(console)),
        )
    console.print(table)
    console.print()
    if facts.unanswered:
        names = ", ".join(facts.unanswered)
        console.print(Text(f"No answer in time, so not known: {names}.", style="yellow"))
    console.print(_closing(findings, setup), soft_wrap=True)


def _account(finding: Finding, ascii_only: bool) -> Group:
    lines = [Text(_spelled(finding.what, ascii_only))]
    if finding.remedy:
        remedy = finding.remedy.rstrip(".") + ":" if finding.command else finding.remedy
        line = Text(_spelled(remedy, ascii_only), style="cyan")
        if finding.command:
            line.append(f" {_spelled(finding.command, ascii_only)}", style="bold cyan")
        lines.append(line)
    return Group(*lines)


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


def _plain(console: Console) -> bool:
    return "utf" not in console.encoding.lower()


def _spelled(text: str, ascii_only: bool) -> str:
    """What the terminal's encoding lacks is shown as a question mark."""
    return text.encode("ascii", "replace").decode("ascii") if ascii_only else text

"""The cleaner: nothing from outside reaches a terminal as more than letters."""

from __future__ import annotations

import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.table import Table
from rich.text import Text

from maestrale.console import CleanConsole
from maestrale.printable import brief, printable, printable_json, without_folders
from serving import ROOT

ATTACKS = {
    "clear": "\x1b[2J",
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "C1": "\x9b2J\x9d0;x\x9c",
    "line": "right\rwrong",
    "backspace": "safe\x08\x08\x08\x08evil",
    "override": "gpj.\u202eexe",
    "isolate": "\u2066\u2067\u2068x\u2069",
    "embedding": "\u202ax\u202bx\u202cx\u202d",
    "hidden line": "a\u2028b\u2029c",
    "half": "\udc80\ud800",
    "null and delete": "\x00\x7f",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_seen_and_does_nothing(attack: str) -> None:
    cleaned = printable(attack)
    assert len(cleaned) == len(attack)
    assert "\N{REPLACEMENT CHARACTER}" in cleaned
    assert not harmful(cleaned)


@pytest.mark.parametrize(
    "text",
    [
        "Text\n\tof lines\n",
        "Grüße",
        "日本語",
        "עברית\u200f",
        "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "a\u00a0b",
        "é\u0301",
        "",
    ],
)
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text


@given(st.text())
def test_no_text_keeps_what_harms(text: str) -> None:
    assert not harmful(printable(text))
    assert printable(printable(text)) == printable(text)


@given(st.dictionaries(st.text(), st.text()))
def test_a_document_keeps_its_meaning(document: dict[str, str]) -> None:
    text = json.dumps(document, ensure_ascii=False)
    assert json.loads(printable_json(text)) == document
    assert not harmful(printable_json(text))


def test_a_quotation_is_short_and_on_one_line() -> None:
    assert brief(" a\n\n b\t\x1b ") == "a b \N{REPLACEMENT CHARACTER}"
    assert brief("x" * 10_000_000, 20) == "x" * 20 + "…"
    assert len(brief("x " * 10_000_000, 20)) <= 21


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_console_shows_only_its_own_sequences(attack: str, terminal: bool) -> None:
    out = io.StringIO()
    console = CleanConsole(file=out, force_terminal=terminal, color_system=None, width=80)
    table = Table(title=attack)
    table.add_column(attack)
    table.add_row(Text(f"in a cell {attack}"))
    console.print(Text(attack), attack, soft_wrap=True, markup=False)
    console.print(table)
    with Live(table, console=console, transient=True) as live:
        live.refresh()
    shown = out.getvalue()
    assert "in a cell" in shown
    for own in ("\x1b[1A", "\x1b[2K", "\x1b[?25l", "\x1b[?25h", "\r"):  # of the live table
        shown = shown.replace(own, "")
    for line in shown.splitlines():
        plain = line
        for own in ("\x1b[0m", "\x1b[1m", "\x1b[3m"):  # of a heading
            plain = plain.replace(own, "")
        assert not harmful(plain), repr(plain)


def test_every_command_prints_through_it() -> None:
    """Documents made of the user's own words are printed as they are, and so is our styling."""
    raw = {}
    for path in sorted((ROOT / "src/maestrale").rglob("*.py")):
        count = path.read_text().count("click.echo(")
        if count:
            raw[path.relative_to(ROOT / "src/maestrale").as_posix()] = count
        text = path.read_text()
        assert "click.secho(" not in text
        if path.name != "console.py":
            assert "= Console(" not in text, f"{path} has a console that cleans nothing"
    assert raw == {
        "cli/echo.py": 1,
        "cli/create_run.py": 1,  # the task file of a dry run
        "cli/render.py": 1,  # the prompt, byte for byte, where no terminal reads it
        "cli/serve.py": 1,  # manifests
        "cli/service.py": 2,  # units
        "cli/setup.py": 5,  # user-data; styled lines
    }


def harmful(text: str) -> bool:
    return any(
        (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") and char not in "\n\t")
        or "\u202a" <= char <= "\u202e"
        or "\u2066" <= char <= "\u2069"
        for char in text
    )


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("/srv/models/a.gguf is no GGUF file.", "a.gguf is no GGUF file."),
        ("There is no '/home/me/.cache/x/config.json'.", "There is no 'config.json'."),
        ("see ~/models/a.gguf, ../b.gguf", "see a.gguf, b.gguf"),
        ("mistralai/Mistral-7B and 3/4 of it", "mistralai/Mistral-7B and 3/4 of it"),
        ("from https://huggingface.co/a/b/c", "from https://huggingface.co/a/b/c"),
        ("/my own/folder of/a.gguf: empty", "a.gguf: empty"),
        ("[Errno 2] No such file: /x/y", "[Errno 2] No such file: y"),
    ],
)
def test_folders_are_left_out(text: str, seen: str) -> None:
    assert without_folders(text, "/my own/folder of/a.gguf", "") == seen

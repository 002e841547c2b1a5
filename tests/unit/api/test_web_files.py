"""The pages' files: nothing from elsewhere, nothing inline."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from maestrale.api.operations import pages
from maestrale.api.operations.pages import FOLDER
from maestrale.api.operations.scenarios import FOLDERS, scenarios_json
from verifying import COLLECTION

FILES = [path for path in sorted(FOLDER.rglob("*")) if path.is_file()]
OURS = [path for path in FILES if path.parent.name != "vendor"]


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://[a-z0-9]|//cdn|@import", text)
    assert path.suffix != ".css" or "url(" not in text


class _Inline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in: str | None = None
        self.files: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.found += [name for name in names if name == "style" or name.startswith("on")]
        self._in = tag if tag in ("script", "style") else None
        self.files += [names[name] or "" for name in ("src", "href") if name in names]

    def handle_data(self, data: str) -> None:
        if self._in and data.strip():
            self.found.append(f"<{self._in}>")

    def handle_endtag(self, tag: str) -> None:
        self._in = None


@pytest.mark.parametrize("page", pages.PAGES.values())
def test_nothing_is_inline_and_every_file_is_there(page: str) -> None:
    parser = _Inline()
    parser.feed((FOLDER / page).read_text())
    assert parser.found == []
    files = [name for name in parser.files if name.startswith("web/")]
    assert files
    assert {name.removeprefix("web/") for name in files} <= pages._names()
    # A proxy may serve them below a path, which no page knows.
    assert [name for name in parser.files if name.startswith("/")] == []


def test_what_the_pages_fetch_is_found_below_a_proxys_path() -> None:
    for path in FOLDER.glob("js/*.js"):
        assert not re.search(r"""(?:call|fetch)\(["'`]/|src: ["'`]/""", path.read_text()), path


def test_modules_import_what_is_there() -> None:
    for path in FOLDER.glob("js/*.js"):
        for name in re.findall(r"""(?:from|import\() ?"(\.[^"]+)";?\)?""", path.read_text()):
            assert (path.parent / name).resolve().is_file(), (path, name)


def test_scenarios_are_those_of_the_collection() -> None:
    scenarios = json.loads(scenarios_json())
    assert [scenario["title"] for scenario in scenarios] == list(FOLDERS)
    collection = json.loads(COLLECTION.read_text())
    requests = {
        item["name"]: json.loads(item["request"]["body"]["raw"].replace("{{summary}}", '""')
                                 .replace("{{answer1}}", '""').replace("{{answer2}}", '""'))
        for folder in collection["item"] if folder["name"] in FOLDERS for item in folder["item"]
    }  # fmt: skip
    offered = 0
    for scenario in scenarios:
        for start in scenario["starts"]:
            for step, text in [
                (start, start["messages"][-1]["content"]),
                *((each, each["content"]) for each in start["follow_ups"]),
            ]:
                body = requests[step["title"]]
                offered += 1
                assert "{{" not in text
                assert step["settings"]["max_tokens"] == body["max_tokens"]
                assert step["settings"].get("seed") == body.get("random_seed")
                assert step["settings"].get("response_format") == body.get("response_format")
    assert offered == len(requests) - 1  # one is there twice, for its seed
    article = scenarios[1]["starts"]
    assert len(article) == 1
    assert "Vincent van Gogh" in article[0]["messages"][0]["content"]
    assert len(article[0]["follow_ups"]) == 3
    assert scenarios[0]["starts"][0]["settings"]["seed"] == 1337

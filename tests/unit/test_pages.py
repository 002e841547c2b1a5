"""Every link in every page leads somewhere: files, and headings within them. No network is used."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from maestrale.cli.main import group
from serving import ROOT, clean_environment

PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
    ]
    if path.is_file()
)
FILES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("src", "tests", "scripts", "benchmarks")
    for path in (ROOT / folder).rglob("*.*")
]
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def headings(path: Path) -> set[str]:
    """The anchors that GitHub, and the site, make of a page's headings."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        again = 1
        while slug in found:
            slug, again = f"{slug}-{again}", again + 1
        found.add(slug)
    return found


def faults(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            wrong.append(f"{target}: there is no such file")
        elif anchor and path.suffix == ".md" and anchor not in headings(path):
            wrong.append(f"{target}: that page has no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert faults(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# One `two`, three!\n[x](b.md) [y](#one-two-three) [z](#four) [w](https://e.org)\n"
    )
    assert faults(page) == [
        "b.md: there is no such file",
        "#four: that page has no such heading",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_is_named_is_there(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "benchmarks.md"):  # they tell of what was
        return
    named = re.findall(
        r"`((?:src|tests|scripts|deploy|docs|benchmarks|postman|locks)/[\w./-]+)", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_source_file_that_is_named_is_there(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "benchmarks.md"):  # they tell of what was
        return
    named = re.findall(r"`((?:[\w-]+/)*[a-z_]+\.(?:py|cpp|hpp|sh))`", page.read_text())
    assert [
        name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in FILES)
    ] == []


def test_every_command_that_is_named_is_there() -> None:
    command = re.compile(r"(?:`|\./|^|sudo )maestrale ([a-z]+)", re.MULTILINE)
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it tells of what was
    named = {name for page in pages for name in command.findall(page.read_text())}
    assert len(named) > 10
    assert named - set(group.list_commands(click.Context(group))) == set()


def test_every_page_of_the_guide_is_in_the_sites_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    listed = set(re.findall(r"^(?:guide|reference|notes)/[a-z-]+$", index, re.MULTILINE))
    there = {
        str(path.relative_to(ROOT / "docs").with_suffix(""))
        for path in PAGES
        if path.is_relative_to(ROOT / "docs") and path.name != "index.md"
    }
    assert listed == there


def test_every_metric_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "src/maestrale/metrics").glob("*.py"))
    names = re.findall(r'"((?:vllm:|maestrale_|http_re)\w+)"', sources)
    assert len(names) > 40
    missing = {name for name in names if name not in page}
    assert missing == set()


FLAG = re.compile(r"(?<![\w-])--(?:\[no-\])?([a-z][a-z0-9-]+)")
# Of Docker, Compose, Ray, kubectl, SkyPilot, the clouds' tools, pip and uv, in examples.
OF_OTHERS = {
    *("from", "now", "homepath"),
    *("cap-drop", "ipc", "profile", "security-opt", "stop-timeout"),
    *("address", "generate", "head", "include-dashboard", "node-ip-address"),
    *("from-literal", "secret", "instance-id", "snapshot-name", "source-disk", "source-disk-zone"),
}


def our_flags() -> set[str]:
    """Of every command, every setting and every script."""

    def of(command: click.Command) -> Iterator[str]:
        for each in command.params:
            yield from (name for name in (*each.opts, *each.secondary_opts) if name[:2] == "--")
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                yield from of(below)

    files = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    files += (ROOT / "benchmarks").rglob("*.py")
    literals = "".join(path.read_text() for path in files)
    return {*(name[2:] for name in of(group)), *re.findall(r"[\s\"]--([a-z][a-z-]+)", literals)}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_flag_that_is_named_is_there(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "benchmarks.md"):  # they tell of what was
        return
    assert set(FLAG.findall(page.read_text())) - our_flags() - OF_OTHERS == set()


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/docs.py"), "site", str(tmp_path / "site")]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=.https?:", page.read_text())
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(.?https?:|@import", sheet.read_text())

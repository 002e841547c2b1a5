"""The version: where it stands, how it is counted up, and what the changelog says of it."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "src/maestrale/__init__.py"
CHANGELOG = "CHANGELOG.md"
# Files that name the image or the tag of the newest version.
EXAMPLES = ("deploy/docker/*.yaml", "docs/guide/*.md")
NUMBER = r"\d+\.\d+\.\d+"
_EXAMPLE = re.compile(rf"(maestrale:|maestrale\.git@v){NUMBER}")
_UNRELEASED = "## [Unreleased]\n"


class BadVersion(Exception):
    """A message for the terminal."""


def current(root: Path = ROOT) -> str:
    """The version of these sources."""
    found = re.search(rf'^__version__ = "({NUMBER})"$', (root / SOURCE).read_text(), re.MULTILINE)
    if not found:
        raise BadVersion(f'{SOURCE} has no line __version__ = "N.N.N"')
    return found[1]


def notes(version: str, root: Path = ROOT) -> str:
    """What the changelog says of this version. Raises: BadVersion where that is nothing."""
    text = (root / CHANGELOG).read_text()
    found = re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)",
        text,
        re.MULTILINE | re.DOTALL,
    )
    if not found or not found[1].strip():
        raise BadVersion(
            f"{CHANGELOG} says nothing of {version}: 'scripts/release bump VERSION' makes its "
            "heading out of [Unreleased], with today's date"
        )
    return found[1].strip()


def bump(version: str, today: date, root: Path = ROOT) -> list[str]:
    """Make this the version: in the sources, in the examples, and in the changelog, where what is
    unreleased becomes its notes. Returns the files that changed. Raises: BadVersion."""
    if not re.fullmatch(NUMBER, version):
        raise BadVersion(f"{version!r} is no version: those are N.N.N")
    if _parts(version) <= _parts(current(root)):
        raise BadVersion(f"{version} does not come after {current(root)}")
    text = (root / CHANGELOG).read_text()
    _, heading, rest = text.partition(_UNRELEASED)
    if not heading or not rest.partition("\n## ")[0].strip():
        raise BadVersion(f"{CHANGELOG} has nothing under [Unreleased]: say what is new")
    changed = {CHANGELOG: text.replace(_UNRELEASED, f"## [{version}] - {today.isoformat()}\n", 1)}
    source = (root / SOURCE).read_text()
    changed[SOURCE] = source.replace(f'"{current(root)}"', f'"{version}"', 1)
    for path in examples(root):
        before = path.read_text()
        after = _EXAMPLE.sub(rf"\g<1>{version}", before)
        if after != before:
            changed[str(path.relative_to(root))] = after
    for name, content in changed.items():
        (root / name).write_text(content)
    return sorted(changed)


def examples(root: Path = ROOT) -> list[Path]:
    return [path for pattern in EXAMPLES for path in sorted(root.glob(pattern))]


def stale_examples(root: Path = ROOT) -> list[str]:
    """Places that name an image or a tag of another version than this one."""
    version = current(root)
    return [
        f"{path.relative_to(root)}: {found[0]}"
        for path in examples(root)
        for found in _EXAMPLE.finditer(path.read_text())
        if not found[0].endswith(version)
    ]


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))

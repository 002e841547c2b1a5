"""One version: in sources, changelog and examples, and in the fingerprint of an answer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from maestrale import __version__
from maestrale.engines.cpu import engine
from scripts import versions
from serving import ROOT, clean_environment

UNRELEASED = (
    "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [0.1.0] - 2026-11-23\n\nOld.\n"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that a version stands in."""
    for path in [ROOT / versions.SOURCE, *versions.examples()]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (tmp_path / versions.CHANGELOG).write_text(UNRELEASED)
    return tmp_path


def test_the_program_tells_the_version_of_its_sources() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "maestrale", "--version"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"maestrale {versions.current()}"
    assert __version__ == versions.current()


def test_the_changelog_and_the_examples_are_of_this_version() -> None:
    assert versions.notes(versions.current())
    assert versions.stale_examples() == []


def test_the_fingerprint_changes_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Decoder:
        arithmetic, identity = 1, "the same model"

    served = object.__new__(engine.CPUEngine)
    served._decoder = Decoder()  # type: ignore[assignment]
    before = served._fingerprint()
    assert served._fingerprint() == before
    monkeypatch.setattr(engine, "__version__", "99.0.0")
    assert served._fingerprint() != before


def test_a_bump_changes_all_places(checkout: Path) -> None:
    changed = versions.bump("9.8.7", date(2027, 1, 2), checkout)
    assert {versions.CHANGELOG, versions.SOURCE, "deploy/docker/compose.yaml"} <= set(changed)
    assert versions.current(checkout) == "9.8.7"
    assert versions.stale_examples(checkout) == []
    assert "## [9.8.7] - 2027-01-02\n" in (checkout / versions.CHANGELOG).read_text()
    assert versions.notes("9.8.7", checkout) == "### Added\n\n- A thing."
    assert versions.notes("0.1.0", checkout) == "Old."


@pytest.mark.parametrize("version", ["0.0.1", versions.current(), "1", "v1.2.3", "1.2.3-rc1"])
def test_a_version_that_does_not_follow_is_refused(checkout: Path, version: str) -> None:
    with pytest.raises(versions.BadVersion):
        versions.bump(version, date(2027, 1, 2), checkout)
    assert versions.current(checkout) == versions.current()


@pytest.mark.parametrize(
    "changelog", ["# Changelog\n", UNRELEASED.replace("### Added\n\n- A thing.\n", "")]
)
def test_nothing_new_is_no_release(checkout: Path, changelog: str) -> None:
    (checkout / versions.CHANGELOG).write_text(changelog)
    with pytest.raises(versions.BadVersion, match="Unreleased"):
        versions.bump("9.8.7", date(2027, 1, 2), checkout)


def test_a_version_without_notes_can_not_be_tagged(checkout: Path) -> None:
    with pytest.raises(versions.BadVersion, match=r"says nothing of 5\.0\.0"):
        versions.notes("5.0.0", checkout)


def test_an_example_that_was_left_behind_is_found(checkout: Path) -> None:
    (checkout / "docs/guide/new.md").write_text("docker run maestrale:0.0.9-cpu\n")
    assert versions.stale_examples(checkout) == ["docs/guide/new.md: maestrale:0.0.9"]

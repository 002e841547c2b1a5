"""Other people's JavaScript is what the manifests say, and a change to it is noticed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving import ROOT

FOLDERS = ("src/maestrale/web/vendor", "src/maestrale/verify/vendor")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script and the folders that it looks at, and nothing else."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/vendor", tmp_path / "scripts/vendor")
    return tmp_path


def check(root: Path) -> str:
    """What the script prints; empty if it is content."""
    command = [sys.executable, str(root / "scripts/vendor"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == (done.stderr == "")
    return done.stderr


def test_all_is_as_the_manifests_say() -> None:
    assert check(ROOT) == ""


@pytest.mark.parametrize("name", FOLDERS)
def test_a_change_is_noticed(checkout: Path, name: str) -> None:
    file = min((checkout / name).glob("*.min.*"))
    with file.open("a") as changed:
        changed.write(";")
    assert file.name in check(checkout)
    file.unlink()
    assert file.name in check(checkout)


def test_a_file_that_nobody_listed_is_noticed(checkout: Path) -> None:
    (checkout / FOLDERS[0] / "more.js").write_text("")
    assert "more.js is not in scripts/vendor" in check(checkout)


def test_a_licence_that_is_missing_is_noticed(checkout: Path) -> None:
    (checkout / FOLDERS[1] / "LICENSES.txt").write_text("")
    assert "lacks chai" in check(checkout)


def test_no_other_folder_has_minified_files() -> None:
    """One convention: whatever is minified lies in a folder that the script writes."""
    found = [path for suffix in ("js", "mjs") for path in (ROOT / "src").rglob(f"*.min.{suffix}")]
    assert found
    assert {str(path.parent.relative_to(ROOT)) for path in found} == set(FOLDERS)

"""The floor of coverage is only ever raised: it is compared with every one that git remembers."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess

import pytest

from serving import ROOT

SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / ".coveragerc")
FLOOR = SETTINGS.getfloat("report", "fail_under")


def floors(patch: str) -> list[float]:
    """Those that a series of patches took away or put in."""
    return [float(number) for number in re.findall(r"^[-+]fail_under = ([\d.]+)", patch, re.M)]


def test_a_patch_tells_its_floors() -> None:
    patch = "-fail_under = 80\n+fail_under = 81.5 # as measured\n fail_under = 99\n"
    assert floors(patch) == [80, 81.5]


def test_it_never_sank() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    command = ["git", "log", "--format=", "-p", "-G", "^fail_under", "--", ".coveragerc"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert max(floors(done.stdout), default=FLOOR) <= FLOOR

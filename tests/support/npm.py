"""Packages from npm that tests drive: installed into a cache once, as root or in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from maestrale.config.paths import default_cache_dir


def npm_package(name: str, version: str, file: str) -> Path:
    """The path of `file`, relative to node_modules, of this package; else skips the test."""
    folder = default_cache_dir().with_name(f"maestrale-tests-{name}") / version
    found = folder / "node_modules" / file
    if not found.exists():
        npm = shutil.which("npm")
        if npm is None or not (os.geteuid() == 0 or os.environ.get("CI")):
            pytest.skip(f"{name} is not installed; CI and root install it with npm")
        if failure := _install(npm, folder, f"{name}@{version}"):
            pytest.skip(f"npm could not install {name}: {failure}")
    return found


@cache  # without a network each try takes more than a minute
def _install(npm: str, folder: Path, package: str) -> str:
    """Why it failed; "" when the package is there."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [npm, "install", "--no-audit", "--prefix", str(folder), package],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr.strip()[-200:] or f"exit {done.returncode}"

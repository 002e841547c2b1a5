"""SkyPilot's own Python environment, made at first use from `locks/cloud.lock`.

SkyPilot wants older versions of click and uvicorn than our other dependencies, so it can't share
their environment. The lock lies in the checkout, and in the wheel beside this file.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from maestrale.config.paths import find_uv
from maestrale.errors import NoSkyPilot

LOCK = "cloud.lock"
SECONDS = 1200.0
# SkyPilot's extras for the clouds whose clients are large. They come on top, held to the lock;
# but Azure's wants older versions than the others, so it has an environment for itself.
ADDED = {"cloud-aws": "aws", "cloud-gcp": "gcp", "cloud-azure": "azure"}
ALONE = "cloud-azure"


def lock_file() -> Path:
    """The lock, in the wheel or in the checkout. Raises: NoSkyPilot when it is in neither."""
    here = Path(__file__).resolve()
    for path in (here.with_name(LOCK), here.parents[4] / "locks" / LOCK):
        if path.is_file():
            return path
    raise NoSkyPilot(f"{LOCK} is missing from this installation of maestrale: install it anew.")


def ensure(data: Path, extras: set[str], say: Callable[[str], None]) -> Path:
    """The Python that has SkyPilot, installing what is missing below `data`.

    `extras`: providers' `extra`. Raises: NoSkyPilot.
    """
    lock = lock_file()
    digest = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:12]
    kind = ALONE if ALONE in extras else "cloud"
    folder = data / f"{kind}-{digest}"
    python = folder / "bin" / "python"
    wanted = sorted(extras & set(ADDED))
    if all((folder / f"{name}.done").exists() for name in ("cloud", *wanted)):
        return python
    data.mkdir(parents=True, exist_ok=True)
    with _alone(data / "cloud.lock"):
        if not (folder / "cloud.done").exists():
            say("installing SkyPilot, once (about 300 MB) ...")
            for old in data.glob(f"{kind}-????????????"):
                shutil.rmtree(old, ignore_errors=True)
            _make(folder)
            _install(folder, ["--require-hashes", "--no-deps", "--requirement", str(lock)])
            (folder / "cloud.done").touch()
        for name in wanted:
            if not (folder / f"{name}.done").exists():
                say(f"installing what SkyPilot needs for {ADDED[name]}, once ...")
                _add(folder, lock, ADDED[name])
                (folder / f"{name}.done").touch()
    return python


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One start installs, others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(folder: Path) -> None:
    uv = find_uv()
    if uv is not None:
        _run([uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(folder)])
        return
    try:
        _run([sys.executable, "-m", "venv", str(folder)])
    except NoSkyPilot as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise NoSkyPilot(
            f"{error}\nInstall python3-venv (Debian, Ubuntu) or uv, then run this again."
        ) from error


def _install(folder: Path, arguments: list[str]) -> None:
    python = str(folder / "bin" / "python")
    uv = find_uv()
    command = (
        [uv, "pip", "install", "--quiet", "--python", python]
        if uv is not None
        else [python, "-m", "pip", "install", "--quiet", "--no-compile", "--no-input"]
    )
    _run([*command, *arguments])


def _add(folder: Path, lock: Path, extra: str) -> None:
    """SkyPilot's extra, with the lock's versions as constraints."""
    pins = re.findall(r"^[a-z0-9][\w.-]*==[^\\\n]+", lock.read_text("utf-8"), re.MULTILINE)
    version = next(pin for pin in pins if pin.startswith("skypilot==")).partition("==")[2].strip()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as held:
        if f"cloud-{extra}" != ALONE:
            held.writelines(f"{pin.strip()}\n" for pin in pins)
        held.flush()
        _install(folder, ["--constraint", held.name, f"skypilot[{extra}]=={version}"])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise NoSkyPilot("SkyPilot could not be installed within 20 minutes.") from error
    except OSError as error:
        raise NoSkyPilot(f"Can't run {command[0]}: {error.strerror}.") from error
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise NoSkyPilot(
            "SkyPilot could not be installed. Is the package index reachable, and is there room "
            f"on the disk?\n{said}"
        )

"""maestrale as a systemd service on this machine: write the unit, start it, take it away."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from maestrale.errors import ServiceError, SettingsError
from maestrale.files import replace_file
from maestrale.machine.unit import Container, Program, environment_file, environment_text

UNIT_FOLDER = Path("/etc/systemd/system")
BOOTED = Path("/run/systemd/system")  # exists where systemd is what runs the machine
NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
MARK = "Description=maestrale, a chat API"
COMMAND_SECONDS = 120.0
WATCH_SECONDS = 6.0  # after its start: wrong settings and models show by then


def unit_path(name: str) -> Path:
    """Where the unit lies. Raises: SettingsError for an odd name."""
    if not NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} can't be a service's name: small letters, digits and '-', a letter first."
        )
    return UNIT_FOLDER / f"{name}.service"


def check_machine() -> None:
    """Raises: ServiceError unless systemd runs here and this is root."""
    if not BOOTED.is_dir() or not shutil.which("systemctl"):
        raise ServiceError(
            "This machine is not run by systemd (a container, perhaps), so there are no services. "
            "With Docker: docker run --detach --restart unless-stopped IMAGE. "
            "To see the unit all the same: --print."
        )
    if os.geteuid() != 0:
        raise ServiceError("Only root can change services: run this with sudo.")


def systemd_version() -> int:
    """Of this machine's systemd; that of Debian 12 where there is none."""
    if not shutil.which("systemctl"):
        return 252
    match = re.match(r"systemd (\d+)", _systemctl("--version", check=False).stdout)
    return int(match[1]) if match else 252


def check_name(name: str, replace: bool) -> None:
    """Raises: ServiceError when a service has this name, unless it is ours and to be replaced."""
    path = unit_path(name)
    known = _systemctl("cat", f"{name}.service", check=False)
    if not path.exists() and known.returncode != 0:
        return
    if not path.exists() or MARK not in path.read_text():
        raise ServiceError(
            f"There is another service named {name}, which is not maestrale's: give a --name."
        )
    if not replace:
        raise ServiceError(
            f"The service {name} exists already ({path}). --replace writes it anew and keeps its "
            f"key; 'maestrale service uninstall --name {name}' takes it away; or give another "
            "--name."
        )


def check_program(program: Program) -> None:
    """Raises: ServiceError when the service's own user couldn't read the installation."""
    for place in filter(None, (program.python, program.paths)):
        check_readable(Path(place), "install maestrale where everyone may read it, in /opt say")
    check_readable(Path(program.python).resolve(), "make the environment with the system's Python")


def check_readable(path: Path, remedy: str) -> None:
    """Raises: ServiceError when other users can't get at `path`."""
    for place in (path, *path.parents):
        if not place.exists():
            raise ServiceError(f"There is no {place}.")
        needed = 0o001 if place != path or place.is_dir() else 0o004
        if not place.stat().st_mode & needed:
            raise ServiceError(
                f"The service runs as a user of its own, which can't read {path} "
                f"({place} is closed to others): {remedy}."
            )


def check_container(container: Container) -> None:
    """Raises: ServiceError when Docker isn't there, or has no such image and can't get it."""
    if not Path(container.docker).exists():
        raise ServiceError("Docker is not installed here: 'maestrale setup' does that.")
    inspect = [container.docker, "image", "inspect", "--format", "{{.Id}}", container.image]
    if _run(inspect).returncode == 0:
        return
    pulled = _run([container.docker, "pull", "--quiet", container.image], seconds=3600)
    if pulled.returncode != 0:
        raise ServiceError(
            f"There is no image {container.image} here, and it can't be fetched: "
            f"{pulled.stderr.strip()[-500:]}"
        )


def verify_unit(name: str, text: str) -> None:
    """Let `systemd-analyze verify` read it. Raises: ServiceError with what it complains of."""
    if not shutil.which("systemd-analyze"):
        return
    with tempfile.TemporaryDirectory(prefix="maestrale-unit-") as folder:
        path = Path(folder) / f"{name}.service"
        path.write_text(text)
        done = _run(["systemd-analyze", "verify", "--man=no", str(path)])
    # It also tells of other units' faults; of those the exit code says nothing.
    ours = [line for line in done.stderr.splitlines() if path.name in line]
    if done.returncode != 0 or ours:
        raise ServiceError("systemd won't have the unit:\n" + "\n".join(ours or [done.stderr]))


def install(name: str, text: str, secrets: Mapping[str, str]) -> None:
    """Write the unit and its secrets, and start it, now and at every boot.

    Raises: ServiceError; the machine is then as it was, or --replace goes on from there.
    """
    verify_unit(name, text)
    variables = Path(environment_file(name))
    variables.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _write(variables, environment_text(secrets), 0o600)
    _write(unit_path(name), text, 0o644)
    _systemctl("daemon-reload")
    _systemctl("enable", f"{name}.service")
    _systemctl("restart", f"{name}.service")


def check_start(name: str) -> None:
    """Watch its first seconds. Raises: ServiceError with the end of its log when it ends."""
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        state = status(name)
        if state.get("ActiveState") == "failed" or state.get("NRestarts", "0") != "0":
            log = _run(["journalctl", "--no-pager", "--output=cat", "-n8", "-u", name])
            raise ServiceError(
                f"The service {name} is installed, and ends as soon as it is started:\n"
                f"{log.stdout.strip()}\nInstall it again with other options and --replace, or "
                f"take it away: maestrale service uninstall --name {name}"
            )
        time.sleep(0.5)


def uninstall(name: str) -> list[Path]:
    """Stop it and take unit and secrets away. Returns where its data still lie.

    Raises: ServiceError when there is no such service of maestrale's.
    """
    path = unit_path(name)
    if not path.exists():
        raise ServiceError(f"There is no service {name}: no {path}.")
    if MARK not in path.read_text():
        raise ServiceError(f"The service {name} is not maestrale's: it stays.")
    _systemctl("disable", "--now", f"{name}.service")
    path.unlink()
    Path(environment_file(name)).unlink(missing_ok=True)
    _systemctl("daemon-reload")
    _systemctl("reset-failed", f"{name}.service", check=False)
    return [folder for folder in (Path("/var/lib", name), Path("/var/cache", name)) if _is(folder)]


def kept_secrets(name: str) -> dict[str, str]:
    """What an earlier installation of this service had in its environment file."""
    try:
        lines = Path(environment_file(name)).read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        key, sign, value = line.partition("=")
        if sign:
            found[key] = re.sub(r"\\(.)", r"\1", value.removeprefix('"').removesuffix('"'))
    return found


def status(name: str) -> dict[str, str]:
    """What systemd knows of it: ActiveState, SubState, UnitFileState, NRestarts, MainPID.

    Raises: ServiceError when there is no such service.
    """
    path = unit_path(name)
    if not path.exists():
        raise ServiceError(f"There is no service {name}: no {path}.")
    wanted = "ActiveState,SubState,UnitFileState,NRestarts,MainPID,ExecMainStatus,Result"
    shown = _systemctl("show", f"--property={wanted}", f"{name}.service")
    return dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)


def _is(folder: Path) -> bool:
    return folder.exists() or folder.is_symlink()


def _write(path: Path, text: str, mode: int) -> None:
    """Whole or not at all, and never readable by more than `mode` says. Raises: ServiceError."""
    try:
        replace_file(path, text, mode=mode)
    except OSError as error:
        raise ServiceError(f"{path} can't be written: {error.strerror}.") from error


def _systemctl(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = _run(["systemctl", "--no-pager", *words])
    if check and done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise ServiceError(f"systemctl {' '.join(words)} failed: {said}")
    return done


def _run(command: list[str], seconds: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"{command[0]} does not answer: {error}") from error

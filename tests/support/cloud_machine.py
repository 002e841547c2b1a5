"""A machine as a cloud would give it: a real SSH server on loopback, in a mount namespace of its
own where Docker and systemd are stand-ins that start the real server. Needs root.

What is written below /etc, /usr and /var there lands in folders of the test, and what would
install packages refuses: nothing done to that machine reaches the one that runs the tests.

Also here: SkyPilot's environment, with a catalogue, and the cloud that `sky_stand_in.py` plays.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maestrale.machine.cloud import environment
from serving import MARK, ROOT, clean_environment, free_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
AVAILABLE = os.geteuid() == 0 and SSHD is not None and shutil.which("ssh") is not None
STAND_INS = ROOT / "tests" / "support" / "stand_ins"
LAYERS = ("etc", "usr", "var")  # where package tools write; /bin, /sbin and /lib are in /usr
COLUMNS = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region"
)
# In the shape of SkyPilot's catalogue; the prices are made up.
CATALOGUE = {
    "common/accelerators.csv": [
        "AcceleratorName,Clouds",
        "A100-80GB,\"['AWS', 'Azure', 'GCP', 'Lambda', 'Paperspace', 'RunPod']\"",
        "H100,\"['AWS', 'DO', 'Lambda', 'Paperspace', 'RunPod']\"",
        "RTXA5000,\"['RunPod']\"",
    ],
    "paperspace/vms.csv": [COLUMNS, "H100,H100,1.0,15.0,80.0,H100,5.95,,East Coast (NY2)"],
    "do/vms.csv": [
        COLUMNS,
        "gpu-h100x1-80gb,H100,1.0,20.0,240.0,H100,3.39,,nyc2",
        "g-2vcpu-8gb,,,2.0,8.0,,0.09,,nyc1",
        "g-4vcpu-16gb,,,4.0,16.0,,0.18,,nyc1",
        "g-8vcpu-32gb,,,8.0,32.0,,0.37,,nyc1",
    ],
    "lambda/vms.csv": [COLUMNS, "gpu_1x_a100_sxm4,A100-80GB,1.0,30.0,200.0,A100,1.29,,us-east-1"],
    "runpod/vms.csv": [
        f"{COLUMNS},AvailabilityZone",
        "1x_RTXA5000_SECURE,RTXA5000,1.0,9.0,25.0,RTXA5000,0.27,0.2,US,US-KS-2",
    ],
}


@dataclass
class CloudMachine:
    """The machine: `etc` and `log` are what a test may look at."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    def login(self) -> dict[str, Any]:
        key = str(self.folder / "key")
        return {"host": "127.0.0.1", "port": self.port, "user": "root", "identity": key}

    def service_pid(self) -> int:
        return int((self.etc / "systemd/system/stand-in.pid").read_text())


@contextlib.contextmanager
def cloud_machine(folder: Path, cache_dir: Path) -> Iterator[CloudMachine]:
    """Start it, and end all that it started."""
    assert SSHD is not None
    port = free_port()
    for name in ("host", "key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
        f"AuthorizedKeysFile {folder}/key.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
        "PasswordAuthentication no\nPermitRootLogin yes\n"
    )
    for name in LAYERS:
        (folder / name).mkdir()
        (folder / f"{name}.work").mkdir()
    # Both, as either may come first on the path.
    for place in ("usr/bin", "usr/local/bin"):
        (folder / place).mkdir(parents=True)
        for path in STAND_INS.iterdir():
            shutil.copy(path, folder / place / path.name)
    # The server takes the test's own Python and caches; Docker's image would have its own.
    served = clean_environment(XDG_CACHE_HOME=str(folder / "cache"), **{MARK: str(folder)})
    command = [sys.executable, "-m", "maestrale", "serve", "--cache-dir", str(cache_dir)]
    (folder / "etc" / "stand-in.json").write_text(
        json.dumps({"command": command, "environment": served})
    )
    mounts = " && ".join(
        f"mount -t overlay overlay -o lowerdir=/{name},upperdir={folder}/{name},"
        f"workdir={folder}/{name}.work /{name}"
        for name in LAYERS
    )
    script = f"{mounts} && mkdir -p /run/sshd && exec {SSHD} -D -e -f {folder}/sshd_config"
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], stdout=log, stderr=log
        )
    machine = CloudMachine(folder, port, process)
    try:
        _wait(process, folder / "sshd.log")
        yield machine
    finally:
        process.terminate()
        process.wait(10)
        with contextlib.suppress(OSError, ValueError):
            os.killpg(machine.service_pid(), signal.SIGTERM)
        _await_gone(str(folder))


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 20
    while "Server listening" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"sshd did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.05)


def _await_gone(mark: str) -> None:
    """Wait for the server's processes; what is left after a while is killed."""
    ends = time.monotonic() + 20
    while left := [pid for pid in Path("/proc").iterdir() if _is_marked(pid, mark)]:
        if time.monotonic() > ends:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(int(pid.name), signal.SIGKILL)
        time.sleep(0.1)


def _is_marked(entry: Path, mark: str) -> bool:
    if not entry.name.isdigit():
        return False
    try:
        marked = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
        return marked and "\nState:\tZ" not in (entry / "status").read_text()
    except OSError:
        return False


def sky_python() -> Path:
    """The Python of SkyPilot's environment, installed from the lock as `create` would."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return environment.ensure(caches / "maestrale-tests-cloud", set(), lambda line: None)


@dataclass
class StandInCloud:
    """What `create` needs to find its way to the stand-ins, as environment variables."""

    folder: Path
    python: Path
    login: dict[str, Any]
    fail: str = ""
    more: dict[str, str] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        """Makes the folders as needed."""
        state = self.folder / "state"
        sky = state / "maestrale" / "machines" / "skypilot"
        write_catalogue(sky)
        (self.folder / "cloud").mkdir(exist_ok=True)
        (self.folder / "home").mkdir(exist_ok=True)
        python = self.folder / "python"
        stand_in = ROOT / "tests" / "support" / "sky_stand_in.py"
        python.write_text(f'#!/bin/sh\nexec {self.python} {stand_in} "$@"\n')
        python.chmod(0o755)
        return {
            "HOME": str(self.folder / "home"),
            "XDG_STATE_HOME": str(state),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "MAESTRALE_CLOUD_PYTHON": str(python),
            "STAND_IN": json.dumps(
                {"folder": str(self.folder / "cloud"), "login": self.login, "fail": self.fail}
            ),
            **self.more,
        }

    def machines(self) -> set[str]:
        """The names of the machines that the cloud has now."""
        found = {path.name for path in (self.folder / "cloud").iterdir() if not path.suffix}
        return found - {"launches", "launching"}

    def launches(self) -> list[dict[str, Any]]:
        path = self.folder / "cloud" / "launches"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_catalogue(sky: Path) -> None:
    """Put the catalogue where SkyPilot keeps its own."""
    for name, lines in CATALOGUE.items():
        path = sky / ".sky" / "catalogs" / "v8" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

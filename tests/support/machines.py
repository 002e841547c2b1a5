"""What the probe writes on many machines: whole outputs, made of recorded pieces."""

from __future__ import annotations

import json
from typing import Any

OS = {
    "ubuntu-24.04": 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nNAME="Ubuntu"\nVERSION_ID="24.04"\n'
    'VERSION="24.04.1 LTS (Noble Numbat)"\nVERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\n'
    "UBUNTU_CODENAME=noble",
    "ubuntu-22.04": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nNAME="Ubuntu"\nVERSION_ID="22.04"\n'
    "VERSION_CODENAME=jammy\nID=ubuntu\nID_LIKE=debian",
    "ubuntu-20.04": 'NAME="Ubuntu"\nVERSION="20.04.6 LTS"\nID=ubuntu\nID_LIKE=debian\n'
    'PRETTY_NAME="Ubuntu 20.04.6 LTS"\nVERSION_ID="20.04"\nVERSION_CODENAME=focal',
    "debian-11": 'PRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\nNAME="Debian GNU/Linux"\n'
    'VERSION_ID="11"\nVERSION_CODENAME=bullseye\nID=debian',
    "debian-12": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\n'
    'VERSION_ID="12"\nVERSION_CODENAME=bookworm\nID=debian',
    "debian-13": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nNAME="Debian GNU/Linux"\n'
    'VERSION_ID="13"\nVERSION_CODENAME=trixie\nID=debian',
    "fedora-42": 'NAME="Fedora Linux"\nVERSION="42 (Cloud Edition)"\nID=fedora\nVERSION_ID=42\n'
    'VERSION_CODENAME=""\nPRETTY_NAME="Fedora Linux 42 (Cloud Edition)"',
}

SMI_580 = """\
Sun Nov 22 20:11:05 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.95.05              Driver Version: 580.95.05      CUDA Version: 13.0     |
+-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |
|                                         |                        |               MIG M. |
|=========================================+========================+======================|
|   0  NVIDIA RTX A5000               Off |   00000000:00:05.0 Off |                  Off |
| 30%   28C    P8              6W /  230W |       1MiB /  24564MiB |      0%      Default |
|                                         |                        |                  N/A |
+-----------------------------------------+------------------------+----------------------+
"""
SMI_470 = """\
Sun Nov 22 20:11:05 2026
+-----------------------------------------------------------------------------+
| NVIDIA-SMI 470.256.02   Driver Version: 470.256.02   CUDA Version: 11.4     |
|-------------------------------+----------------------+----------------------+
| GPU  Name        Persistence-M| Bus-Id        Disp.A | Volatile Uncorr. ECC |
| Fan  Temp  Perf  Pwr:Usage/Cap|         Memory-Usage | GPU-Util  Compute M. |
|                               |                      |               MIG M. |
|===============================+======================+======================|
|   0  NVIDIA RTX A5000    Off  | 00000000:00:05.0 Off |                  Off |
| 30%   33C    P0    58W / 230W |      0MiB / 24256MiB |      2%      Default |
|                               |                      |                  N/A |
+-------------------------------+----------------------+----------------------+
"""
MODULE_580 = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
    "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)"
)
MODULE_470 = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024\n"
    "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)"
)
MODULES = "nvidia_uvm 2084864 0 - Live 0x0000000000000000 (OE)\nnvidia 14381056 17 - Live 0x0 (OE)"
A5000 = "00000000:00:05.0, NVIDIA RTX A5000, 580.95.05, 24564, 1, 8.6"
PCI_A5000 = "0000:00:05.0 0x10de 0x2231 0x030000 nvidia"
PCI_CIRRUS = "0000:00:02.0 0x1013 0x00b8 0x030000 cirrus-qemu"

_RUNTIMES = {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}}
DENIED = (
    "permission denied while trying to connect to the Docker daemon socket at "
    'unix:///var/run/docker.sock: Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.47/info": dial unix '
    "/var/run/docker.sock: connect: permission denied"
)
STOPPED = (
    "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon "
    "running?"
)


def docker_info(*, nvidia: bool = True, version: str = "28.2.2", **more: object) -> str:
    """One line, as `docker info --format '{{json .}}'` has it, less what is not read."""
    runtimes = {**_RUNTIMES, **({"nvidia": {"path": "nvidia-container-runtime"}} if nvidia else {})}
    return json.dumps(
        {
            "ID": "6d1c0a6f-5f0e-4f37-9a52-6a9f5f1c4a51",
            "Images": 2,
            "Driver": "overlay2",
            "CgroupVersion": "2",
            "Runtimes": runtimes,
            "DefaultRuntime": "runc",
            "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"],
            "ServerVersion": version,
            "DockerRootDir": "/var/lib/docker",
            **more,
        },
        separators=(",", ":"),
    )


def failed_info(message: str) -> str:
    """What the client prints where it can't reach the daemon: its own part, then the reason."""
    own = {"ID": "", "Driver": "", "Runtimes": None, "DockerRootDir": "", "SecurityOptions": None}
    return json.dumps({**own, "ServerErrors": [message], "ServerVersion": ""}) + f"\n{message}"


DAEMON_JSON = '{"runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}}'
NOT_FOUND = "dpkg-query: no packages found matching nvidia-*\n"
PACKAGES = """\
ii  containerd.io 1.7.27-1
ii  docker-ce 5:28.2.2-1~ubuntu.24.04~noble
ii  libnvidia-compute-580 580.95.05-0ubuntu0.24.04.2
ii  nvidia-container-toolkit 1.17.8-1
ii  nvidia-driver-580-server-open 580.95.05-0ubuntu0.24.04.2
un  podman <none>"""
FREE_LOCKS = """\
130 /var/cache/apt/archives/lock
129 /var/lib/apt/lists/lock
128 /var/lib/dpkg/lock
127 /var/lib/dpkg/lock-frontend
1: FLOCK  ADVISORY  WRITE 702 00:19:1034 0 EOF
2: POSIX  ADVISORY  WRITE 640 00:19:871 0 EOF"""
SUDO_FREE = """\
Matching Defaults entries for ubuntu on gpu:
    env_reset, mail_badpass, use_pty

User ubuntu may run the following commands on gpu:
    (ALL : ALL) ALL
    (ALL) NOPASSWD: ALL"""
LISTENING = """\
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2300 1
   1: 3500007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 2201 1"""


def disks(root_free: int, *, boot_free: int | None = None, size: int = 200) -> str:
    """df's tables for the folders asked about; GiB, for /boot MiB."""

    def table(path: str, mount: str, total: int, free: int) -> str:
        head = "Filesystem     1024-blocks     Used Available Capacity Mounted on"
        return f"for {path}\n{head}\n/dev/vda1 {total} {total - free} {free} 50% {mount}\n"

    paths = ("/", "/var/lib/docker", "/var/lib/containerd", "/home/ubuntu", "/tmp")
    text = "".join(table(path, "/", size << 20, root_free << 20) for path in paths)
    if boot_free is not None:
        return text + table("/boot", "/boot", 900 << 10, boot_free << 10)
    return text + table("/boot", "/", size << 20, root_free << 20)


GOOD: dict[str, tuple[str, int]] = {
    "clock": ("1795380804", 0),
    "os": (OS["ubuntu-24.04"], 0),
    "kernel": ("Linux\n6.8.0-51-generic\nx86_64", 0),
    "user": ("1000\nubuntu\nubuntu adm sudo docker", 0),
    "home": ("/home/ubuntu", 0),
    "pci": (f"{PCI_CIRRUS}\n{PCI_A5000}", 0),
    "drm": ("/dev/nvidia0\n/dev/nvidia-uvm\n/dev/nvidiactl", 2),
    "nvidia-module": (MODULE_580, 0),
    "nvidia-programs": ("/usr/bin/nvidia-smi", 0),
    "modules": (MODULES, 0),
    "secure-boot": ("efi\n   6   0   0   0   0", 0),
    "memory": ("MemTotal: 45983404 kB\nMemAvailable: 44800000 kB\nSwapTotal: 0 kB", 0),
    "memory-limit": ("", 1),
    "cpu": (
        "8\n8\nmodel name\t: Intel(R) Xeon(R) Gold 5315Y CPU @ 3.20GHz\n"
        "flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni",
        0,
    ),
    "ports": (LISTENING, 0),
    "boot": ("systemd\nsystemd\nheaders", 0),
    "maker": ("Paperspace\nMachine\n\nSeaBIOS", 0),
    "cloud-init": ("nocloud", 0),
    "locks": (FREE_LOCKS, 0),
    "updates": ("", 0),
    "daemon-json": (DAEMON_JSON, 0),
    "cdi": ("", 2),
    "docker-socket": ("socket\nwritable", 0),
    "token": ("", 0),
    "python": ("Python 3.12.3", 0),
    "compiler": ("/usr/bin/c++", 0),
    "packages": (PACKAGES, 1),
    "modinfo": ("580.95.05", 0),
    "virtualisation": ("kvm", 0),
    "ntp": ("NTP=yes\nNTPSynchronized=yes", 0),
    "services": ("active\nactive\ninactive\ninactive", 3),
    "sudo": (SUDO_FREE, 0),
    "toolkit": ("NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80a9b9d0db00d9b1d73", 0),
    "docker": ("Docker version 28.2.2, build e6534b4", 0),
    "docker-info": (docker_info(), 0),
    "hub": ("asked at 1795380805\nHTTP/2 200 \ndate: Sun, 22 Nov 2026 20:53:25 GMT\n", 0),
    "disks": (disks(120), 0),
    "nvidia-smi": (SMI_580, 0),
    "gpus": (A5000, 0),
}


def recorded(
    *without: str,
    complete: object = True,
    **changed: Any,
) -> str:
    """The probe's output on the good machine, with sections left out and others in their place.

    `changed` by the sections' names, with _ for -: text and status; a text alone ends with 0.
    """
    sections = {name: value for name, value in GOOD.items() if name not in without}
    for name, value in changed.items():
        sections[name.replace("_", "-")] = (value, 0) if isinstance(value, str) else value
    parts = ["Welcome to Paperspace!", "@@maestrale 1"]
    for name, (text, status) in sections.items():
        parts.append(f"@@ {name}\n{text}\n\n@@= {status}")
    return "\n".join([*parts, "@@end" if complete else "", ""])


# What else is missing where there is no driver.
NO_DRIVER = ("nvidia-module", "nvidia-programs", "modules", "modinfo", "nvidia-smi", "gpus")
NO_GPU: dict[str, str | tuple[str, int]] = {"pci": PCI_CIRRUS, "drm": ("", 2)}
NO_DOCKER = ("docker", "docker-info", "docker-socket", "daemon-json")

"""The operations as pyinfra tests its own: facts given, commands yielded; nothing is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pytest

from machines import DAEMON_JSON, NO_DOCKER, NO_DRIVER, NOT_FOUND, OS, recorded
from maestrale.machine.probe import read_facts
from maestrale.machine.processes import Completed
from maestrale.machine.setup import scripts
from maestrale.machine.setup.packages import (
    CONTRIB,
    CUDA_FINGERPRINT,
    PREFERENCES,
    TOOLKIT_FINGERPRINT,
    cuda_repository,
    toolkit_repository,
)
from maestrale.machine.setup.plan import SetupOptions, make_plan
from maestrale.machine.setup.run import preview
from maestrale.machine.target import Target

DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "ubuntu-22.04": {"kernel": "Linux\n5.15.0-91-generic\nx86_64"},
    "ubuntu-24.04": {"kernel": "Linux\n6.8.0-51-generic\nx86_64"},
    "debian-12": {"kernel": "Linux\n6.1.0-41-amd64\nx86_64"},
}
DOCKER_UNIT = "Id=docker.service\nSubState={}\nUnitFileState=enabled\n"
UBUNTU_PACKAGES = (
    "ca-certificates curl gnupg docker.io apparmor nvidia-headless-no-dkms-580-server-open "
    "nvidia-utils-580-server linux-modules-nvidia-580-server-open-generic nvidia-container-toolkit"
)
DEBIAN_PACKAGES = (
    "ca-certificates curl gnupg docker.io apparmor nvidia-driver-cuda nvidia-kernel-open-dkms "
    "linux-headers-6.1.0-41-amd64 linux-headers-amd64 nvidia-container-toolkit"
)


@dataclass
class Recorded(Target):
    """A machine that only answers facts: `files` and `packages` are what it has."""

    files: dict[str, str] = field(default_factory=dict)
    packages: str = ""
    faults: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    docker: str = "dead"
    named_by: str = ""

    def run(
        self,
        script: str,
        *,
        input: str | bytes | BinaryIO | None = None,
        timeout: float = 60.0,
        as_root: bool = False,
    ) -> Completed:
        for sign, answer in (
            ("dpkg --audit", self.faults),
            ("grep -rlF", self.named_by),
            ("dpkg -l", "".join(f"ii  {name}  1.0  all  text\n" for name in self.packages.split())),
            ("daemon.json", self.files.get("daemon.json", "")),
            ("systemctl show", DOCKER_UNIT.format(self.docker)),
        ):
            if sign in script:
                return Completed(0, answer, "")
        for path, fingerprint in self.keys.items():
            if "--show-keys" in script and path in script:
                return Completed(0, f"pub:::::::::\nfpr:::::::::{fingerprint}:\n", "")
        for path, text in self.files.items():
            if f"cat {path}" in script:
                return Completed(0, text, "")
        assert not any(word in script for word in ("apt-get -y", "nvidia-ctk", "cat >")), script
        return Completed(0, "", "")


def changes(name: str, machine: Recorded) -> dict[str, tuple[str, ...]]:
    """Step → commands, of the steps that would change something."""
    text = recorded(
        *NO_DRIVER,
        *NO_DOCKER,
        "toolkit",
        os=OS[name],
        pci="0000:00:05.0 0x10de 0x2231 0x030200 -",
        packages=(NOT_FOUND, 1),
        user="0\nroot\nroot",
        **DISTRIBUTIONS[name],
    )
    facts = read_facts(text)
    outcomes = preview(machine, facts, make_plan(facts, SetupOptions()))
    return {one.doing: one.commands for one in outcomes if one.changed}


def complete(name: str) -> Recorded:
    """A machine that has all of it."""
    repositories = [toolkit_repository()]
    files = {"daemon.json": DAEMON_JSON}
    if name == "debian-12":
        repositories.append(cuda_repository("debian12", "x86_64"))
        files["/etc/apt/preferences.d/maestrale-nvidia"] = PREFERENCES
        files["/etc/apt/sources.list.d/maestrale-contrib.sources"] = CONTRIB
    files |= {one.source_file: one.source for one in repositories}
    return Recorded(
        files=files,
        packages=DEBIAN_PACKAGES if name == "debian-12" else UBUNTU_PACKAGES,
        keys={one.key_file: one.fingerprint for one in repositories},
        docker="running",
    )


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_complete_machine_needs_nothing(name: str) -> None:
    assert changes(name, complete(name)) == {}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_fresh_machine_needs_every_step_but_the_repair(name: str) -> None:
    found = changes(name, Recorded())
    assert "Packages are whole" not in found
    driver = next(
        commands for doing, commands in found.items() if doing.startswith("NVIDIA driver")
    )
    (command,) = driver
    if name == "debian-12":
        assert "set -- nvidia-driver-cuda;" in command
        assert "nvidia-kernel-open-dkms linux-headers-6.1.0-41-amd64" in command
    else:
        assert "set -- nvidia-headless-no-dkms-580-server-open nvidia-utils-580-server;" in command
        assert "linux-modules-nvidia-580-server-open-generic" in command
    assert "--no-install-recommends" in command
    keys = "".join(one for doing, one in flat(found) if doing.startswith("Key of"))
    assert TOOLKIT_FINGERPRINT in keys
    assert (CUDA_FINGERPRINT in keys) == (name == "debian-12")
    assert found["NVIDIA's runtime in Docker"] == (
        "nvidia-ctk runtime configure --runtime=docker",
        "systemctl restart docker",
    )
    everything = " ".join(command for _, command in flat(found))
    for gone in ("apt-key", "cudnn", "nvidia-docker", "add-apt-repository"):
        assert gone not in everything


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_one_package_missing_is_one_package_installed(name: str) -> None:
    machine = complete(name)
    machine.packages = machine.packages.replace("nvidia-container-toolkit", "")
    found = changes(name, machine)
    assert list(found) == ["Package lists", "Container toolkit: nvidia-container-toolkit"]
    (command,) = found["Container toolkit: nvidia-container-toolkit"]
    assert command.startswith("set -- nvidia-container-toolkit; ")


def test_a_half_done_package_is_finished_first() -> None:
    machine = complete("debian-12")
    machine.faults = "The following packages are only half configured:\n nvidia-driver-cuda"
    assert changes("debian-12", machine) == {"Packages are whole": scripts.REPAIR}


def test_a_file_or_a_key_that_someone_changed_is_put_right() -> None:
    machine = complete("debian-12")
    machine.files["/etc/apt/preferences.d/maestrale-nvidia"] = "Package: *\n"
    machine.keys["/etc/apt/keyrings/maestrale-nvidia-cuda.asc"] = "A" * 40
    key, pin = changes("debian-12", machine)
    assert key.startswith("Key of https://developer.download.nvidia.com/")
    assert pin == "Driver branch pinned"


def test_a_repository_that_another_file_names_is_not_named_twice() -> None:
    # Two keys for one repository would stop apt altogether.
    machine = Recorded(named_by="/etc/apt/sources.list.d/nvidia-container-toolkit.list\n")
    assert not [doing for doing in changes("ubuntu-24.04", machine) if "Repository" in doing]
    assert [doing for doing in changes("ubuntu-24.04", Recorded()) if "Repository" in doing]


def test_a_stopped_docker_is_started() -> None:
    machine = complete("ubuntu-24.04")
    machine.docker = "dead"
    assert changes("ubuntu-24.04", machine) == {
        "Docker runs, also after a reboot": ("systemctl start docker.service",)
    }


def flat(found: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(doing, command) for doing, commands in found.items() for command in commands]

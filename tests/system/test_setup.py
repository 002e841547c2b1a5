"""`maestrale setup` on a real Debian 12: what is on the machine afterwards."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from apt_repository import Package, Repository, Signer, nvidia_packages, serving
from debian_machine import DebianMachine, debian_machine, ssh_server
from maestrale.errors import (
    DiskFull,
    GpuTooOld,
    MachineError,
    NoNetwork,
    PackagesBroken,
    PackagesLocked,
    ProofFailed,
    RepositoryRefused,
)
from maestrale.machine.setup.flow import SetupRequest, SetupResult, set_up
from maestrale.machine.setup.packages import PREFERENCES_FILE
from maestrale.machine.setup.plan import SetupOptions
from maestrale.machine.target import Target
from serving import free_port
from setup_notes import DRIVER, VERSION, Notes

pytestmark = pytest.mark.slow


@dataclass
class World:
    """The repositories: NVIDIA's stand-in, the distribution's, and who signs."""

    nvidia: Repository
    distribution: Repository
    signer: Signer
    stranger: Signer
    debs: list[Path]
    distribution_key: str

    def publish(self, signer: Signer | None = None, *, unsigned: bool = False) -> None:
        """NVIDIA's packages, signed by its key unless said otherwise."""
        self.nvidia.publish(self.debs, None if unsigned else signer or self.signer)

    @property
    def options(self) -> SetupOptions:
        return SetupOptions(
            nvidia_repository=self.nvidia.url, nvidia_key=self.signer.public, wait_for_apt=0.5
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("apt")
    signers = [Signer(folder / name, name) for name in ("nvidia", "stranger", "debian")]
    debs = folder / "debs"
    debs.mkdir()
    made = [each.build(debs, folder / "work") for each in nvidia_packages("580", VERSION)]
    docker = '#!/bin/sh\n[ "$1" = --version ] && echo "Docker version 20.10.24"\n'
    own = [
        Package("docker.io", "20.10.24-1", files={"/usr/bin/docker": (docker, 0o755)}),
        Package("apparmor", "3.0.8-3"),
    ]
    with serving(folder / "nvidia-repo") as nvidia, serving(folder / "debian-repo") as debian:
        debian.publish([each.build(debs, folder / "work") for each in own], signers[2])
        yield World(nvidia, debian, signers[0], signers[1], made, signers[2].public)
    for signer in signers:
        signer.close()


@pytest.fixture
def machine(world: World) -> Iterator[DebianMachine]:
    world.publish()
    with debian_machine() as one:
        one.only_source(world.distribution.url, world.distribution_key)
        one.put_gpu()
        yield one


def run(
    machine: DebianMachine, options: SetupOptions, target: Target | None = None
) -> tuple[SetupResult, str]:
    notes = Notes()
    request = SetupRequest(options, proof=False)
    return set_up(target or machine.target, request, notes), notes.text


def test_the_first_run_installs_and_the_second_changes_nothing(
    machine: DebianMachine, world: World
) -> None:
    before = machine.everything()
    planned = set_up(machine.target, SetupRequest(world.options, dry_run=True), Notes())
    assert machine.everything() == before, "a dry run changed something"
    assert planned.changed

    result, said = run(machine, world.options)
    assert [one.doing for one in result.outcomes if one.changed] == [
        one.doing for one in planned.outcomes if one.changed
    ]
    installed = machine.installed()
    assert {name: installed.get(name) for name in DRIVER} == dict.fromkeys(DRIVER, VERSION)
    assert {"docker.io", "nvidia-container-toolkit"} <= set(installed)
    assert not [name for name in installed if name.startswith(("cuda", "libcudnn"))]
    assert '"nvidia"' in machine.run("cat /etc/docker/daemon.json")
    # apt knows the repository by a key of its own, and by no other.
    source = machine.run("cat /etc/apt/sources.list.d/maestrale-nvidia-mirror.sources")
    assert "Signed-By: /etc/apt/keyrings/maestrale-nvidia-mirror.asc" in source
    assert machine.run("ls /etc/apt/trusted.gpg.d").split() == [
        name for name in machine.run("ls /etc/apt/trusted.gpg.d").split() if "debian" in name
    ]
    # There is no such GPU here, so the driver can't be loaded.
    assert result.reboot_needed
    assert "A reboot is needed" in said

    after = machine.everything()
    again, said = run(machine, world.options)
    assert not again.changed
    assert "Nothing was missing; nothing was changed." in said
    assert machine.everything() == after


def test_the_branch_stays_where_it_is_pinned(machine: DebianMachine, world: World) -> None:
    run(machine, world.options)
    policy = machine.run("apt-cache policy nvidia-driver-cuda")
    assert "590.44.01-1" in policy
    assert f"Candidate: {VERSION}" in policy
    machine.run("apt-get update && apt-get -y dist-upgrade")
    assert machine.installed()["nvidia-driver-cuda"] == VERSION
    # A step that someone undid is done again, and no other.
    (machine.root / PREFERENCES_FILE.lstrip("/")).unlink()
    result, _ = run(machine, world.options)
    assert [one.doing for one in result.outcomes if one.changed] == ["Driver branch pinned"]


def test_over_ssh_and_a_wrong_key_is_told(
    machine: DebianMachine, world: World, tmp_path: Path
) -> None:
    port = free_port()
    with ssh_server(machine, tmp_path, port) as key:
        known = tmp_path / "known_hosts"
        options = (f"UserKnownHostsFile={known}", "ConnectionAttempts=20")
        target = Target("127.0.0.1", "root", port, key, accept_new=True, options=options)
        with target:
            result, said = run(machine, world.options, target)
            assert result.changed
            assert said.startswith(f"root@127.0.0.1:{port}: Debian 12 on ")
            assert not run(machine, world.options, target)[0].changed
        wrong = Target("127.0.0.1", "root", port, tmp_path / "host", options=options)
        with wrong, pytest.raises(MachineError, match="key"):
            run(machine, world.options, wrong)
    assert set(machine.installed()) >= DRIVER


def test_what_was_left_half_done_is_repaired(machine: DebianMachine, world: World) -> None:
    # A package whose script fails the first time, as a module that can't be built does.
    run(machine, world.options)
    script = machine.root / "var/lib/dpkg/info/nvidia-kernel-open-dkms.postinst"
    script.write_text("#!/bin/sh\n[ -e /root/mended ] || exit 10\n")
    script.chmod(0o755)
    status = machine.root / "var/lib/dpkg/status"
    text = status.read_text()
    head, name, rest = text.partition("Package: nvidia-kernel-open-dkms\n")
    broken = rest.replace("install ok installed", "install ok half-configured", 1)
    status.write_text(head + name + broken)
    assert "nvidia-kernel-open-dkms" not in machine.installed()
    with pytest.raises(PackagesBroken, match="Packages are whole"):
        run(machine, world.options)
    machine.run("touch /root/mended")
    result, _ = run(machine, world.options)
    assert [one.doing for one in result.outcomes if one.changed] == ["Packages are whole"]
    assert machine.installed()["nvidia-kernel-open-dkms"] == VERSION
    assert not run(machine, world.options)[0].changed


@pytest.mark.parametrize("unsigned", [False, True], ids=["another key", "unsigned"])
def test_a_repository_that_is_not_signed_by_the_key_is_refused(
    machine: DebianMachine, world: World, unsigned: bool
) -> None:
    world.publish(world.stranger, unsigned=unsigned)
    with pytest.raises(RepositoryRefused, match="--nvidia-key"):
        run(machine, world.options)
    assert not set(machine.installed()) & {*DRIVER, "nvidia-container-toolkit"}
    assert machine.run("ls /etc/apt/sources.list.d") == ""
    machine.run("apt-get update")  # apt still works
    world.publish()
    assert run(machine, world.options)[0].changed
    assert set(machine.installed()) >= DRIVER


def test_no_network_and_the_next_run_goes_on(machine: DebianMachine, world: World) -> None:
    unreachable = SetupOptions(
        nvidia_repository="http://127.0.0.1:9/",  # where nothing listens
        nvidia_key=world.signer.public,
        wait_for_apt=0.5,
    )
    with pytest.raises(NoNetwork, match="can't be reached from the machine") as caught:
        run(machine, unreachable)
    assert "127.0.0.1" in str(caught.value)
    assert not set(machine.installed()) & DRIVER
    assert run(machine, world.options)[0].changed
    assert set(machine.installed()) >= DRIVER


def test_a_lock_that_is_held_is_waited_for_then_told(machine: DebianMachine, world: World) -> None:
    before = machine.everything()
    path = machine.root / "var/lib/dpkg/lock-frontend"
    with path.open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        with pytest.raises(PackagesLocked, match="is installing packages"):
            run(machine, world.options)
    assert machine.everything() == before
    assert run(machine, world.options)[0].changed


def test_without_a_gpu_there_is_docker_alone(machine: DebianMachine, world: World) -> None:
    for file in sorted((machine.root / "sys").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    result, said = run(machine, SetupOptions(wait_for_apt=0.5))
    assert (result.changed, result.gpu, result.reboot_needed) == (True, False, False)
    assert "Docker alone" in said
    assert "docker.io" in machine.installed()
    assert not [name for name in machine.installed() if "nvidia" in name]
    assert not run(machine, SetupOptions(wait_for_apt=0.5))[0].changed
    with pytest.raises(ProofFailed, match="does not run"):
        set_up(machine.target, SetupRequest(SetupOptions(cpu=True)), Notes())


def test_a_gpu_too_old_is_refused_before_anything_is_done(
    machine: DebianMachine, world: World
) -> None:
    machine.put_gpu("0x1db4")
    before = machine.everything()
    with pytest.raises(GpuTooOld, match=r"V100.*--cpu"):
        run(machine, world.options)
    assert machine.everything() == before


def test_a_full_disk_is_told_before_and_during(world: World) -> None:
    world.publish()
    with debian_machine(size="24m") as small:
        small.only_source(world.distribution.url, world.distribution_key)
        small.put_gpu()
        with pytest.raises(DiskFull, match=r"0\.0 GiB free") as caught:
            run(small, world.options)
        assert re.search("Nothing was changed", str(caught.value))

"""From a machine's facts to what it should have; and what is refused before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from machines import NO_DOCKER, NO_DRIVER, NO_GPU, NOT_FOUND, OS, PCI_CIRRUS, disks, recorded
from maestrale.errors import (
    DiskFull,
    GpuTooOld,
    SecureBootOn,
    SettingsError,
    SetupRefused,
    UnsupportedMachine,
)
from maestrale.machine.probe import read_facts
from maestrale.machine.setup.packages import CUDA_FINGERPRINT, TOOLKIT_FINGERPRINT
from maestrale.machine.setup.plan import (
    SetupOptions,
    SetupPlan,
    kernel_flavour,
    make_plan,
    read_options,
)
from maestrale.machine.setup.reboot import reboot_to_come

PCI = "0000:00:05.0 0x10de {} 0x030200 -"
FRESH: dict[str, Any] = {"pci": PCI.format("0x2231"), "packages": (NOT_FOUND, 1)}
DEBIAN: dict[str, Any] = {
    "os": OS["debian-12"],
    "kernel": "Linux\n6.1.0-41-cloud-amd64\nx86_64",
}
JAMMY: dict[str, Any] = {"os": OS["ubuntu-22.04"], "kernel": "Linux\n5.15.0-1053-aws\nx86_64"}
SECURE = "efi\n   6   0   0   0   1"


def plan(*without: str, options: SetupOptions | None = None, **changed: Any) -> SetupPlan:
    return make_plan(read_facts(recorded(*without, **changed)), options or SetupOptions())


def fresh(**changed: Any) -> SetupPlan:
    """A machine as a cloud gives it: an A5000, and nothing installed."""
    return plan(*NO_DRIVER, *NO_DOCKER, "toolkit", **{**FRESH, **changed})


def test_ubuntu_gets_the_driver_from_ubuntu() -> None:
    for machine, flavour in (({}, "generic"), (JAMMY, "aws")):
        found = fresh(**machine)
        assert found.docker == ("docker.io", "apparmor")
        assert found.driver == (
            "nvidia-headless-no-dkms-580-server-open",
            "nvidia-utils-580-server",
        )
        first, *_ = found.driver_modules[0].sets
        assert first == (f"linux-modules-nvidia-580-server-open-{flavour}",)
        assert [(one.name, one.fingerprint) for one in found.repositories] == [
            ("maestrale-nvidia-toolkit", TOOLKIT_FINGERPRINT)
        ]
        assert (found.preferences, found.contrib, found.runtime) == ("", False, True)


def test_debian_gets_it_from_nvidia_and_keeps_its_branch() -> None:
    found = fresh(**DEBIAN)
    assert found.driver == ("nvidia-driver-cuda",)
    assert found.driver_modules[0].sets[0] == (
        "nvidia-kernel-open-dkms",
        "linux-headers-6.1.0-41-cloud-amd64",
        "linux-headers-cloud-amd64",
    )
    cuda, toolkit = found.repositories
    assert cuda.uri.endswith("/repos/debian12/x86_64/")
    assert cuda.fingerprint == CUDA_FINGERPRINT
    assert toolkit.name == "maestrale-nvidia-toolkit"
    assert "Pin: version 580.*" in found.preferences
    assert found.contrib
    arm = fresh(**{**DEBIAN, "kernel": "Linux\n6.1.0-41-arm64\naarch64"})
    assert arm.repositories[0].uri.endswith("/repos/debian12/sbsa/")


def test_nothing_of_cuda_or_cudnn_on_any_machine() -> None:
    for machine in ({}, JAMMY, DEBIAN):
        found = fresh(**machine)
        names = {*found.docker, *found.driver, *found.toolkit, *found.key_tools}
        names |= {name for choice in found.driver_modules for one in choice.sets for name in one}
        assert not [name for name in names if name.startswith(("cuda", "libcudnn"))]


@pytest.mark.parametrize(
    "options", [SetupOptions(), SetupOptions(cpu=True)], ids=["no GPU", "--cpu"]
)
def test_without_a_gpu_docker_alone(options: SetupOptions) -> None:
    machine = NO_GPU if not options.cpu else {}
    found = plan(*NO_DRIVER, *NO_DOCKER, "toolkit", options=options, **{**FRESH, **machine})
    assert found.docker == ("docker.io", "apparmor")
    assert (found.gpus, found.driver, found.toolkit, found.repositories) == ((), (), (), ())


def test_what_works_stays_wherever_it_came_from() -> None:
    found = plan()
    assert (found.driver, found.docker, found.driver_modules) == ((), (), ())
    assert found.notes == (
        "Docker 28.2.2 is there, and stays.",
        "NVIDIA's driver 580.95.05 is there, and stays.",
    )


def test_our_own_driver_is_looked_at_again() -> None:
    ours = "ii  nvidia-headless-no-dkms-580-server-open 580.95\nii  nvidia-utils-580-server 580"
    assert plan(packages=ours).driver
    # Half of it there, and it doesn't run: gone on with.
    half = "ii  nvidia-utils-580-server 580.95.05-0ubuntu0.24.04.2"
    assert plan("nvidia-smi", "gpus", "nvidia-module", "modules", packages=half).driver


def test_an_old_driver_of_packages_is_replaced_and_one_of_the_installer_refused() -> None:
    old = {"nvidia_smi": "", "gpus": "", "modinfo": "535.54.03"}
    without = ("nvidia-module", "modules", "nvidia-smi", "gpus")
    packaged = plan(*without, modinfo="535.54.03", packages="ii  nvidia-driver-535 535.54.03-0")
    assert packaged.driver
    assert "535.54.03 is replaced" in packaged.notes[-1]
    with pytest.raises(SetupRefused, match="nvidia-uninstall"):
        plan(*without, modinfo=old["modinfo"], packages=(NOT_FOUND, 1))


def test_boards_with_nvswitch_get_the_fabric_manager() -> None:
    switches = "\n".join(f"0000:{n:02x}:00.0 0x10de 0x22a3 0x068000 -" for n in range(4))
    found = fresh(pci=f"{PCI.format('0x2330')}\n{switches}")
    assert found.driver_modules[1].sets == (("nvidia-fabricmanager-580",),)


@pytest.mark.parametrize("name", ["ubuntu-20.04", "debian-11", "debian-13", "fedora-42"])
def test_another_distribution_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedMachine, match=r"set-up knows Ubuntu 22\.04, Ubuntu 24\.04"):
        fresh(os=OS[name])


def test_old_gpus_are_refused_unless_another_one_will_do() -> None:
    volta, ampere = PCI.format("0x1db4"), PCI.format("0x2231").replace("05.0", "06.0")
    with pytest.raises(GpuTooOld, match=r"V100.*Turing.*--cpu"):
        fresh(pci=volta)
    assert fresh(pci=f"{volta}\n{ampere}").gpus == ("NVIDIA RTX A5000",)


def test_secure_boot_is_refused_only_where_modules_are_unsigned() -> None:
    assert fresh(secure_boot=SECURE).driver
    with pytest.raises(SecureBootOn, match="Nothing was changed"):
        fresh(secure_boot=SECURE, **DEBIAN)
    assert not fresh(secure_boot=SECURE, **{**DEBIAN, "pci": PCI_CIRRUS}).driver


def test_a_full_disk_is_refused_before_anything_is_done() -> None:
    with pytest.raises(DiskFull, match=r"3\.0 GiB free"):
        fresh(disks=disks(3))
    # Docker is there; the driver needs room as well.
    with pytest.raises(DiskFull, match=r"3\.0 GiB free"):
        plan(*NO_DRIVER, **{**FRESH, "disks": disks(3)})
    plan(*NO_DRIVER, options=SetupOptions(cpu=True), **{**FRESH, "disks": disks(3)})


def test_a_reboot_to_come_is_told_beforehand() -> None:
    without = read_facts(recorded(*NO_DRIVER, **FRESH))
    assert reboot_to_come(without) == ""
    free = read_facts(recorded(*NO_DRIVER, **FRESH, modules="nouveau 3096576 1 - Live 0x0"))
    assert "the kernel uses nouveau" in reboot_to_come(free)


def test_a_foreign_kernel_must_bring_its_headers() -> None:
    custom = {**DEBIAN, "kernel": "Linux\n6.18.44-custom\nx86_64"}
    assert fresh(**custom).driver_modules[0].sets == (("nvidia-kernel-open-dkms",),)
    with pytest.raises(SetupRefused, match="headers"):
        fresh(**custom, boot="systemd\nsystemd")


def test_a_container_gets_no_driver() -> None:
    container = {"boot": "bash\ncontainer"}
    with pytest.raises(UnsupportedMachine, match="container"):
        fresh(**container)
    assert "Docker may not start" in fresh(**container, pci=PCI_CIRRUS).notes[-1]


@pytest.mark.parametrize(
    ("distribution", "version", "kernel", "flavour"),
    [
        ("ubuntu", "22.04", "5.15.0-91-generic", "generic"),
        ("ubuntu", "22.04", "6.8.0-51-generic", "generic-hwe-22.04"),
        ("ubuntu", "24.04", "6.8.0-51-generic", "generic"),
        ("ubuntu", "24.04", "6.11.0-17-generic", "generic-hwe-24.04"),
        ("ubuntu", "22.04", "6.8.0-1021-gcp", "gcp"),
        ("ubuntu", "24.04", "6.18.44-custom", ""),
        ("debian", "12", "6.1.0-18-amd64", "amd64"),
        ("debian", "12", "6.1.0-41-cloud-amd64", "cloud-amd64"),
        ("debian", "12", "6.12.9+bpo-cloud-amd64", "cloud-amd64"),
        ("debian", "12", "6.18.44-custom", ""),
    ],
)
def test_kernels(distribution: str, version: str, kernel: str, flavour: str) -> None:
    assert kernel_flavour(distribution, version, kernel) == flavour


def test_the_mirrors_options(tmp_path: Path) -> None:
    key = tmp_path / "key.asc"
    key.write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    options = read_options(False, "http://mirror/nvidia", key, 1.0)
    (mirror,) = fresh_with(options).repositories
    assert mirror.uri == "http://mirror/nvidia/"
    for wrong in (("http://m", None), (None, key), ("mirror", key), ("http://m", tmp_path / "no")):
        with pytest.raises(SettingsError):
            read_options(False, wrong[0], wrong[1], 1.0)
    with pytest.raises(SettingsError, match="--cpu"):
        read_options(True, "http://m", key, 1.0)
    with pytest.raises(SettingsError, match="can't be read: No such file or directory"):
        read_options(False, "http://m", tmp_path / "no", 1.0)
    key.write_text("binary")
    with pytest.raises(SettingsError, match="armoured"):
        read_options(False, "http://m", key, 1.0)


def fresh_with(options: SetupOptions) -> SetupPlan:
    return plan(*NO_DRIVER, *NO_DOCKER, "toolkit", options=options, **{**FRESH, **DEBIAN})

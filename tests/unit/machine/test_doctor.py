"""doctor's judgement on recorded machines: what is found, and the one remedy."""

from __future__ import annotations

import dataclasses

import pytest

import machines
from machines import NO_DOCKER, NO_DRIVER, NO_GPU, OS, recorded
from maestrale.machine.doctor import Asked, Finding, examine, verdict
from maestrale.machine.probe import read_facts

ASKED = Asked(target="ubuntu@gpu", now=1795380804.0)
SETUP = "maestrale setup ubuntu@gpu"
PCI_8X_H100 = "\n".join(
    [f"0000:{n:02x}:00.0 0x10de 0x2330 0x030200 nvidia" for n in range(8)]
    + [f"0000:{n:02x}:00.0 0x10de 0x22a3 0x068000 -" for n in range(16, 20)]
)


def findings(text: str, asked: Asked = ASKED) -> dict[str, Finding]:
    return {one.check: one for one in examine(read_facts(text), asked)}


def notable(text: str, asked: Asked = ASKED) -> dict[str, tuple[str, str]]:
    """check → (state, command), of what is not ok."""
    found = findings(text, asked)
    return {n: (one.state, one.command) for n, one in found.items() if one.state != "ok"}


def test_nothing_is_missing_on_a_machine_that_is_set_up() -> None:
    found = findings(recorded())
    assert {name: one.what for name, one in found.items() if one.state != "ok"} == {}
    assert (
        found["system"].what == "Ubuntu 24.04.1 LTS, Linux 6.8.0-51-generic, x86_64 on Paperspace."
    )
    assert found["gpu"].what == "NVIDIA RTX A5000 (24 GiB)."
    assert found["driver"].what.startswith("NVIDIA 580.95.05, for CUDA up to 13.0; ")
    assert found["docker"].what == "Docker 28.2.2 runs, and ubuntu may use it."


def test_a_fresh_gpu_machine_needs_setup_for_three_things() -> None:
    text = recorded(
        *NO_DRIVER,
        *NO_DOCKER,
        "toolkit",
        pci="0000:00:05.0 0x10de 0x2231 0x030000 -",
        packages=(machines.NOT_FOUND, 1),
    )
    assert notable(text) == {
        "driver": ("problem", SETUP),
        "docker": ("problem", SETUP),
        "container-toolkit": ("problem", SETUP),
    }
    gpu = findings(text)["gpu"]
    assert gpu.what == "NVIDIA RTX A5000."  # by PCI, without a driver or lspci


def test_a_cpu_machine_needs_docker_alone() -> None:
    text = recorded(*NO_DRIVER, *NO_DOCKER, "toolkit", packages=("", 1), **NO_GPU)
    assert notable(text) == {"docker": ("problem", SETUP)}
    assert notable(text, Asked()) == {"docker": ("problem", "maestrale setup")}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param(
            {
                "nvidia_module": machines.MODULE_470,
                "nvidia_smi": machines.SMI_470,
                "modinfo": "470.256.02",
                "gpus": ('Field "compute_cap" is not a valid field to query.', 2),
            },
            {"driver": ("problem", SETUP)},
            id="old driver",
        ),
        pytest.param(
            {
                "nvidia_module": machines.MODULE_470,
                "nvidia_smi": machines.SMI_470,
                "modinfo": "470.256.02",
                "packages": ("ii  docker.io 28.2.2-0ubuntu1", 1),
            },
            {"driver": ("problem", "sudo nvidia-uninstall")},
            id="old driver from NVIDIA's installer",
        ),
        pytest.param(
            {"nvidia_smi": ("", 124), "gpus": ("", 1)},
            {"driver": ("problem", "sudo reboot")},
            id="nvidia-smi hangs",
        ),
        pytest.param(
            {
                "nvidia_smi": (
                    "Failed to initialize NVML: Driver/library version mismatch\n"
                    "NVML library version: 580.105",
                    18,
                ),
                "gpus": ("", 1),
            },
            {"driver": ("problem", "sudo reboot")},
            id="driver updated under it",
        ),
        pytest.param(
            {"nvidia_smi": ("No devices were found", 6), "gpus": ("", 1)},
            {"driver": ("problem", "sudo dmesg | grep -iE 'nvrm|xid'")},
            id="the driver sees no device",
        ),
        pytest.param(
            {"pci": f"{machines.PCI_A5000}\n0000:00:06.0 0x10de 0x2231 0x030000 nvidia"},
            {"gpu": ("problem", "sudo dmesg | grep -iE 'nvrm|xid'")},
            id="one of two GPUs fell off",
        ),
        pytest.param(
            {"docker_info": (machines.failed_info(machines.DENIED), 1), "docker_socket": "socket"},
            {"docker": ("warning", "sudo usermod -aG docker ubuntu")},
            id="docker with sudo only, as setup leaves it",
        ),
        pytest.param(
            {
                "docker_info": (machines.failed_info(machines.DENIED), 1),
                "docker_socket": "socket",
                "sudo": ("sudo: a password is required", 1),
            },
            {
                "docker": ("problem", "sudo usermod -aG docker ubuntu"),
                "rights": (
                    "warning",
                    'echo "ubuntu ALL=(ALL) NOPASSWD:ALL" | sudo tee /etc/sudoers.d/maestrale',
                ),
            },
            id="docker without permission",
        ),
        pytest.param(
            {"docker_info": (machines.failed_info(machines.STOPPED), 1)},
            {"docker": ("problem", "sudo systemctl enable --now docker")},
            id="docker stopped",
        ),
        pytest.param(
            {"docker_info": ("Its socket waits; asking would start it.", 1)},
            {"docker": ("problem", "sudo systemctl enable --now docker")},
            id="docker waiting for its socket",
        ),
        pytest.param(
            {"docker_info": ("", 124)},
            {"docker": ("problem", "sudo systemctl restart docker")},
            id="docker hangs",
        ),
        pytest.param(
            {"docker_info": machines.docker_info(version="18.09.1")},
            {"docker": ("problem", "sudo apt-get remove docker-ce docker-engine docker")},
            id="docker too old",
        ),
        pytest.param(
            {"docker": "podman version 4.9.3", "docker_info": '{"host":{"arch":"amd64"}}'},
            {
                "docker": ("problem", "sudo apt-get remove podman-docker"),
                "container-toolkit": ("warning", SETUP),
            },
            id="podman under the name docker",
        ),
        pytest.param(
            {"docker_info": machines.docker_info(nvidia=False), "daemon_json": ("", 1)},
            {
                "container-toolkit": (
                    "problem",
                    "sudo nvidia-ctk runtime configure --runtime=docker && "
                    "sudo systemctl restart docker",
                )
            },
            id="toolkit without its entry",
        ),
        pytest.param(
            {"docker_info": machines.docker_info(nvidia=False)},
            {"container-toolkit": ("problem", "sudo systemctl restart docker")},
            id="entry written, docker not restarted",
        ),
        pytest.param(
            {
                "docker_info": (machines.failed_info(machines.STOPPED), 1),
                "daemon_json": '{"runtimes": {',
            },
            {
                "docker": ("problem", "sudo systemctl enable --now docker"),
                "container-toolkit": (
                    "problem",
                    "python3 -m json.tool /etc/docker/daemon.json",
                ),
            },
            id="daemon.json is broken",
        ),
        pytest.param(
            {"disks": machines.disks(8)},
            {"disk": ("problem", "docker system prune --all")},
            id="disk nearly full",
        ),
        pytest.param({"disks": machines.disks(30)}, {"disk": ("warning", "")}, id="disk small"),
        pytest.param(
            {"disks": machines.disks(90, boot_free=40)},
            {"disk": ("problem", "sudo apt-get autoremove --purge")},
            id="/boot full",
        ),
        pytest.param(
            {"memory": "MemTotal: 4030000 kB\nMemAvailable: 3500000 kB"},
            {"memory": ("problem", "maestrale plan MODEL")},
            id="little memory",
        ),
        pytest.param(
            {"memory_limit": str(8 << 30)},
            {"memory": ("warning", "maestrale plan MODEL")},
            id="a container's share of the memory",
        ),
        pytest.param(
            {
                "ports": machines.LISTENING.replace("00000000:0016", "00000000:1F40"),
                "sockets": 'LISTEN 0 5 0.0.0.0:8000 0.0.0.0:* users:(("nginx",pid=7,fd=3))',
            },
            {"port": ("problem", "maestrale serve --port 8001")},
            id="port taken",
        ),
        pytest.param(
            {"hub": "asked at 1795384405\nHTTP/2 200 \ndate: Sun, 22 Nov 2026 20:53:25 GMT"},
            {"time": ("problem", "sudo timedatectl set-ntp true")},
            id="clock an hour ahead",
        ),
        pytest.param(
            {
                "hub": ("asked at 1795380805\ncurl: (6) Could not resolve host: hf.co", 6),
                "ntp": "NTP=no\nNTPSynchronized=no",
                "clock": "1795380704",
            },
            {
                "network": ("warning", ""),
                "time": ("warning", "sudo timedatectl set-ntp true"),
            },
            id="no network, clock behind",
        ),
        pytest.param(
            {"locks": machines.FREE_LOCKS + "\n3: POSIX  ADVISORY  WRITE 4711 fc:01:127 0 EOF"},
            {"packages": ("warning", "")},
            id="apt at work",
        ),
        pytest.param(
            {"packages": ("iF  nvidia-dkms-580 580.95.05-0ubuntu1\n" + machines.PACKAGES, 1)},
            {"packages": ("problem", "sudo dpkg --configure -a")},
            id="package half done",
        ),
        pytest.param(
            {"cloud_init": "aws\nrunning"},
            {"packages": ("warning", "cloud-init status --wait")},
            id="first start",
        ),
        pytest.param(
            {"boot": "systemd\nsystemd\nreboot-required\nheaders"},
            {"restart": ("warning", "sudo reboot")},
            id="restart due",
        ),
        pytest.param(
            {"boot": "systemd\nsystemd\nmodules-gone"},
            {"restart": ("warning", "sudo reboot")},
            id="kernel replaced",
        ),
        pytest.param(
            {"sudo": ("sudo: a password is required", 1)},
            {
                "rights": (
                    "warning",
                    'echo "ubuntu ALL=(ALL) NOPASSWD:ALL" | sudo tee /etc/sudoers.d/maestrale',
                )
            },
            id="sudo with a password",
        ),
        pytest.param(
            {"sudo": ("Sorry, user ubuntu may not run sudo on gpu.", 1)},
            {"rights": ("warning", "")},
            id="no sudo",
        ),
        pytest.param(
            {"kernel": "Linux\n6.8.0\nriscv64"}, {"system": ("problem", "")}, id="architecture"
        ),
        pytest.param(
            {
                "pci": PCI_8X_H100,
                "gpus": "\n".join(
                    f"00000000:{n:02x}:00.0, NVIDIA H100 80GB HBM3, 580.95.05, 81559, 1, 9.0"
                    for n in range(8)
                ),
            },
            {"driver": ("problem", "sudo systemctl enable --now nvidia-fabricmanager")},
            id="NVSwitch without its manager",
        ),
    ],
)
def test_one_thing_wrong(
    changed: dict[str, str | tuple[str, int]], expected: dict[str, tuple[str, str]]
) -> None:
    assert notable(recorded(**changed)) == expected


def test_root_needs_no_sudo_to_type() -> None:
    text = recorded(
        "sudo",
        user="0\nroot\nroot",
        docker_info=machines.docker_info(nvidia=False),
        daemon_json=("", 1),
    )
    assert notable(text)["container-toolkit"] == (
        "problem",
        "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker",
    )


def test_a_gpu_too_old_for_cuda_13_is_told_before_a_driver_is_asked_for() -> None:
    text = recorded(
        *NO_DRIVER, "toolkit", pci="0000:00:1e.0 0x10de 0x1db1 0x030200 -", packages=("", 1)
    )
    assert notable(text) == {"gpu": ("problem", "maestrale serve --engine cpu")}
    what = findings(text)["gpu"].what
    assert "Tesla V100 SXM2 16 GB, of the Volta generation, is too old: CUDA 13.0" in what


def test_turing_works_with_limits() -> None:
    text = recorded(
        pci="0000:00:1e.0 0x10de 0x1eb8 0x030200 nvidia",
        gpus="00000000:00:1E.0, Tesla T4, 580.95.05, 15360, 0, 7.5",
    )
    assert notable(text) == {"gpu": ("warning", "")}


def test_nouveau_holds_the_gpu() -> None:
    text = recorded(
        *NO_DRIVER,
        "toolkit",
        pci="0000:00:05.0 0x10de 0x2204 0x030000 nouveau",
        modules="nouveau 3096576 1 - Live 0x0000000000000000",
        packages=("", 1),
    )
    found = findings(text)
    assert found["gpu"].what == "NVIDIA GeForce RTX 3090."
    assert "The kernel's own nouveau holds the GPU" in found["driver"].what
    assert found["driver"].command == SETUP


NOT_LOADED: dict[str, str | tuple[str, int]] = {
    "pci": "0000:00:05.0 0x10de 0x2231 0x030000 -",
    "drm": ("", 2),
}


def test_secure_boot_keeps_the_driver_out() -> None:
    text = recorded(
        "nvidia-module", "modules", "nvidia-smi", "gpus",
        secure_boot="efi\n   6   0   0   0   1", **NOT_LOADED,
    )  # fmt: skip
    assert notable(text) == {
        "driver": ("problem", ""),
        "secure-boot": (
            "problem",
            "sudo mokutil --import /var/lib/dkms/mok.pub && sudo reboot",
        ),
    }


def test_secure_boot_is_a_warning_before_a_driver_is_installed() -> None:
    text = recorded(
        *NO_DRIVER,
        os=OS["debian-12"],
        secure_boot="efi\n   6   0   0   0   1",
        packages=("", 1),
        **NOT_LOADED,
    )
    assert notable(text)["secure-boot"] == ("warning", "")
    assert notable(recorded(secure_boot="efi\n   6   0   0   0   1")) == {}


def test_a_driver_that_could_not_be_built() -> None:
    text = recorded(
        "nvidia-module", "modules", "nvidia-smi", "gpus", "modinfo", boot="systemd\nsystemd",
        **NOT_LOADED,
    )  # fmt: skip
    driver = findings(text)["driver"]
    assert "headers are missing" in driver.what
    assert driver.command == SETUP


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("ubuntu-24.04", True),
        ("ubuntu-22.04", True),
        ("debian-12", True),
        ("ubuntu-20.04", False),
        ("debian-11", False),
        ("debian-13", False),
        ("fedora-42", False),
    ],
)
def test_distributions(name: str, known: bool) -> None:
    bare = recorded(*NO_DOCKER, os=OS[name])
    assert findings(bare)["system"].state == ("ok" if known else "problem")
    # Where everything is there already, a distribution unknown to setup is no hindrance.
    assert findings(recorded(os=OS[name]))["system"].state == ("ok" if known else "warning")


@pytest.mark.parametrize(
    "changed",
    [
        {"os": OS["debian-13"]},
        {"os": OS["fedora-42"]},
        {"kernel": "Linux\n5.15.167.4-microsoft-standard-WSL2\nx86_64", "drm": ("/dev/dxg", 2)},
    ],
    ids=["debian 13", "fedora", "wsl"],
)
def test_setup_is_no_remedy_where_it_would_refuse(
    changed: dict[str, str | tuple[str, int]],
) -> None:
    text = recorded(*NO_DRIVER, *NO_DOCKER, "toolkit", packages=("", 1), **changed)
    found = findings(text)
    assert found["docker"].state == "problem"
    assert {one.command for one in found.values()} & {SETUP} == set()


@pytest.mark.parametrize("name", ["ubuntu-22.04", "ubuntu-24.04", "debian-12"])
@pytest.mark.parametrize("old", [False, True], ids=["no driver", "old driver"])
def test_setup_agrees_where_it_is_the_remedy(name: str, old: bool) -> None:
    """The two read the same facts; what doctor sends to setup, setup takes."""
    from maestrale.machine.setup.plan import SetupOptions, make_plan

    kernel = "6.1.0-31-amd64" if name == "debian-12" else "6.8.0-51-generic"
    changed: dict[str, str | tuple[str, int]] = {
        "os": OS[name],
        "kernel": f"Linux\n{kernel}\nx86_64",
        "packages": ("ii  nvidia-driver-470 470.256.02-0ubuntu1" if old else "", 1),
    }
    if old:
        changed |= {
            "nvidia_module": machines.MODULE_470,
            "nvidia_smi": machines.SMI_470,
            "modinfo": "470.256.02",
        }
    text = recorded(*NO_DOCKER, "toolkit", *(() if old else NO_DRIVER), **changed)
    cured = {check for check, (_, command) in notable(text).items() if command == SETUP}
    assert cured == {"driver", "docker", "container-toolkit"}
    plan = make_plan(read_facts(text), SetupOptions())
    assert plan.docker
    assert plan.driver
    assert plan.toolkit


def test_a_cpu_machine_is_told_of_the_compiler_that_its_engine_can_use() -> None:
    cpu = "2\n2\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2 fma f16c"
    machine = {"packages": ("", 1), "cpu": cpu, **NO_GPU}
    here = recorded(*NO_DRIVER, "toolkit", **machine)
    assert findings(here)["processor"].what.endswith("AVX2. C++ compiler: /usr/bin/c++.")
    gone = recorded(*NO_DRIVER, "toolkit", **{**machine, "compiler": ("", 127)})
    assert notable(gone) == {}
    assert "apt install g++" in findings(gone)["processor"].what
    old = recorded(*NO_DRIVER, "toolkit", **{**machine, "cpu": cpu.replace("avx2", "")})
    assert "without AVX2: the CPU engine runs" in findings(old)["processor"].what
    on_gpu = recorded(cpu=cpu, compiler=("", 127))
    assert "compiler" not in findings(on_gpu)["processor"].what


def test_arm64_has_no_flags_to_judge() -> None:
    text = recorded(
        *NO_DRIVER,
        "toolkit",
        kernel="Linux\n6.8.0-1021-aws\naarch64",
        cpu="64\n64\n\nFeatures\t: fp asimd evtstrm aes sve",
        packages=("", 1),
        **NO_GPU,
    )
    assert notable(text) == {}
    assert findings(text)["processor"].what == "64 cores."


def test_wsl_has_windows_driver() -> None:
    wsl: dict[str, str | tuple[str, int]] = {
        "kernel": "Linux\n5.15.167.4-microsoft-standard-WSL2\nx86_64",
        "pci": "5582:00:00.0 0x1414 0x008e 0x030200 dxgkrnl",
        "drm": ("/dev/dxg", 2),
        "virtualisation": "wsl",
    }
    text = recorded("nvidia-module", "modules", "modinfo", packages=("", 1), **wsl)
    assert notable(text) == {}
    old = machines.SMI_580.replace("580.95.05", "551.86   ").replace("13.0", "12.4")
    text = recorded("nvidia-module", "modules", "modinfo", packages=("", 1), nvidia_smi=old, **wsl)
    assert notable(text) == {"driver": ("problem", "wsl --shutdown")}


def test_a_container_is_told_from_its_host() -> None:
    text = recorded(
        *NO_DRIVER, *NO_DOCKER, "toolkit", virtualisation="docker", packages=("", 1), **NO_GPU
    )
    # Our image is such a container: nothing in it is wrong.
    assert notable(text) == {"system": ("warning", "maestrale doctor USER@HOST")}


def test_a_container_needs_only_to_be_given_the_gpus() -> None:
    inside = {"virtualisation": "docker", "packages": ("", 1)}
    text = recorded(*NO_DRIVER, *NO_DOCKER, "toolkit", **inside)
    found = findings(text)
    assert (found["driver"].state, found["driver"].command) == ("problem", "")
    assert "--gpus all" in found["driver"].remedy
    assert notable(recorded(*NO_DOCKER, "toolkit", **inside)).keys() == {"system"}


def test_other_gpus_are_named_and_not_used() -> None:
    text = recorded(
        *NO_DRIVER,
        "toolkit",
        pci="0000:03:00.0 0x1002 0x744c 0x030000 amdgpu",
        packages=("", 1),
    )
    assert notable(text) == {}
    assert "AMD GPU, PCI id 1002:744c is not used" in findings(text)["gpu"].what


def test_a_gpu_newer_than_the_table_is_not_refused() -> None:
    text = recorded(*NO_DRIVER, pci="0000:00:05.0 0x10de 0x4242 0x030200 -", packages=("", 1))
    gpu = findings(text)["gpu"]
    assert gpu.state == "ok"
    assert "NVIDIA GPU, PCI id 10de:4242" in gpu.what


def test_our_own_service_may_hold_the_port() -> None:
    text = recorded(
        ports=machines.LISTENING.replace(":0016", ":1F40"),
        service='{"status":"ready","detail":""}',
    )
    assert notable(text) == {}
    assert findings(text)["port"].what == "8000: maestrale answers there (ready)."


@pytest.mark.parametrize("length", range(0, 6000, 211))
def test_a_probe_that_was_cut_short_still_tells_what_it_saw(length: int) -> None:
    whole = recorded()
    text = whole[: min(len(whole), len("Welcome to Paperspace!\n@@maestrale 1\n") + length)]
    facts = read_facts(text)
    assert len({one.check for one in examine(facts, ASKED)}) == len(examine(facts, ASKED))


def test_a_hang_in_the_last_section_is_named() -> None:
    text = recorded("gpus", "nvidia-smi", complete=False) + "@@ nvidia-smi\n"
    facts = read_facts(text)
    assert facts.unanswered == ("nvidia-smi",)
    assert notable(text) == {"driver": ("problem", "sudo reboot")}


def test_what_a_machine_says_can_not_drive_the_terminal() -> None:
    evil = OS["ubuntu-24.04"].replace("Ubuntu 24.04.1 LTS", "Ubuntu\x1b[2J\x07 24.04")
    facts = read_facts(recorded(os=evil))
    shown = "".join(one.what for one in examine(facts, ASKED))
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_every_finding_that_is_not_ok_has_one_remedy() -> None:
    with pytest.raises(AssertionError):
        Finding("gpu", "problem", "No GPU.")
    with pytest.raises(AssertionError):
        Finding("gpu", "ok", "A GPU.", "Do something.")


def test_the_verdict_is_the_worst() -> None:
    good = Finding("a", "ok", "")
    warning = Finding("b", "warning", "", "x")
    assert verdict([good]) == "ok"
    assert verdict([good, warning]) == "warning"
    assert verdict([warning, dataclasses.replace(warning, state="problem"), good]) == "problem"

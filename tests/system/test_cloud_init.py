"""User-data: by cloud-init's own schema, by shellcheck, and run at a machine's first boot."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from apt_repository import Package, Signer, nvidia_packages, serving
from debian_machine import DebianMachine, debian_machine
from maestrale.machine.setup import cloud_init
from maestrale.machine.setup.cloud_init import LARGEST, SCRIPT_FILE, user_data
from maestrale.machine.setup.plan import SetupOptions
from maestrale.machine.setup.reboot import UNIT_FILE
from maestrale.machine.source import Source
from serving import ROOT
from setup_notes import DRIVER, VERSION

pytestmark = pytest.mark.slow
ADDRESS = "https://example.org/maestrale.git"
IMAGE = "registry.example.org/maestrale:0.1.0-cuda"
SOURCES = [IMAGE, f"git+{ADDRESS}@v0.1.0", "==0.1.0"]


@pytest.fixture(autouse=True)
def installed_from_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_init, "installed_from", lambda: Source("git", f"git+{ADDRESS}@main"))


@pytest.fixture(scope="module")
def machine() -> Iterator[DebianMachine]:
    with debian_machine() as one:
        yield one


@pytest.mark.parametrize("source", SOURCES)
def test_cloud_init_accepts_it(machine: DebianMachine, source: str) -> None:
    text = user_data(SetupOptions(), source)
    assert len(text.encode()) <= LARGEST
    (machine.root / "root/user-data").write_text(text)
    assert "Valid" in machine.run("cloud-init schema --config-file /root/user-data 2>&1")


def test_cloud_inits_schema_can_refuse(machine: DebianMachine) -> None:
    text = user_data(SetupOptions(), SOURCES[1]).replace("permissions:", "permission:", 1)
    (machine.root / "root/user-data").write_text(text)
    done = machine.target.run("cloud-init schema --config-file /root/user-data 2>&1")
    assert "permission" in done.stdout
    assert not done.ok


@pytest.mark.parametrize("source", SOURCES)
def test_its_script_is_sound_shell(source: str, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    document = yaml.safe_load(user_data(SetupOptions(cpu=True), source))
    script = tmp_path / "script"
    script.write_text(document["write_files"][0]["content"])
    done = subprocess.run(["shellcheck", "-s", "sh", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_first_boot_sets_up_and_goes_on_after_its_reboot(tmp_path: Path) -> None:
    signers = [Signer(tmp_path / name, name) for name in ("nvidia", "debian")]
    debs = tmp_path / "debs"
    debs.mkdir()
    nvidia_debs = [each.build(debs, tmp_path / "w") for each in nvidia_packages("580", VERSION)]
    docker = '#!/bin/sh\n[ "$1" != --version ] || echo "Docker version 20.10.24"\n'
    own = [
        Package("docker.io", "20.10.24-1", files={"/usr/bin/docker": (docker, 0o755)}),
        Package("apparmor", "3.0.8-3"),
    ]
    with (
        serving(tmp_path / "nvidia-repo") as nvidia,
        serving(tmp_path / "debian-repo") as debian,
        debian_machine() as machine,
    ):
        debian.publish([each.build(debs, tmp_path / "w") for each in own], signers[1])
        nvidia.publish(nvidia_debs, signers[0])
        machine.only_source(debian.url, signers[1].public)
        machine.put_gpu()
        stand_in = machine.root / "usr/bin/systemctl"
        stand_in.write_text('#!/bin/sh\necho "$@" >>/root/systemctl\n')
        stand_in.chmod(0o755)
        put_repository(machine)
        put_pip_settings(machine)
        options = SetupOptions(nvidia_repository=nvidia.url, nvidia_key=signers[0].public)
        for file in yaml.safe_load(user_data(options, IMAGE))["write_files"]:
            path = machine.root / file["path"].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file["content"])
            path.chmod(int(file["permissions"], 8))

        first = machine.target.run(f"{SCRIPT_FILE} 2>&1", timeout=600.0)
        # No driver can be loaded here.
        assert (first.rc, "Rebooting" in first.stdout) == (3, True), first.stdout
        assert machine.run("tail -n 1 /root/systemctl") == "reboot\n"
        installed = machine.installed()
        assert {name: installed.get(name) for name in DRIVER} == dict.fromkeys(DRIVER, VERSION)
        lines = (machine.root / UNIT_FILE.lstrip("/")).read_text().splitlines()
        words = {name: value for name, _, value in (line.partition("=") for line in lines)}
        assert words["ExecStart"].endswith(
            f"setup --service --wait-for-apt 1800 --source {IMAGE} "
            f"--nvidia-repository {nvidia.url} --nvidia-key {cloud_init.KEY_FILE}"
        )

        # After the reboot it starts with nothing but what the unit gives it; now the GPU is gone.
        for file in ("vendor", "device", "class"):
            (machine.root / f"sys/bus/pci/devices/0000:00:05.0/{file}").unlink()
        given = [line.partition("=")[2] for line in lines if line.startswith("Environment=")]
        resumed = machine.run(
            f"env -i {' '.join(given)} {words['ExecStart']} --no-proof 2>&1", timeout=300.0
        )
        assert "Nothing was missing; nothing was changed." in resumed
        unit = machine.run("cat /etc/systemd/system/maestrale.service")
        assert IMAGE in unit
        assert "--gpus" not in unit
        assert "restart maestrale.service" in machine.run("cat /root/systemctl")
        # By hand, once more: it fetches nothing, and the service stays.
        again = machine.run(f"{SCRIPT_FILE} --no-proof 2>&1", timeout=300.0)
        assert "maestrale: installing" not in again
        assert machine.installed() == installed
    for signer in signers:
        signer.close()


def put_repository(machine: DebianMachine) -> None:
    """This checkout as a git repository, which git finds in place of ADDRESS."""
    here = machine.root / "srv/maestrale.git"
    here.mkdir(parents=True)
    for name in ("src", "scripts", "locks", "deploy", "postman"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("maestrale", "pyproject.toml", "README.md", "LICENSE", "hatch_build.py"):
        shutil.copy(ROOT / name, here / name)
    git = "git -c user.name=t -c user.email=t@example.org"
    machine.run(
        "cd /srv/maestrale.git && git init -q -b main && git add -A && "
        f"{git} commit -q -m all && "
        f"git config --system url.file:///srv/maestrale.git.insteadOf {ADDRESS}"
    )


def put_pip_settings(machine: DebianMachine) -> None:
    """The machine's pip finds packages where this one's does."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in ("index-url", "extra-index-url", "trusted-host", "cert"):
            settings[name] = value.strip("'\"")
    (machine.root / "etc/pip.conf").write_text(
        "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )
    if "cert" in settings:
        shutil.copy(settings["cert"], machine.root / settings["cert"].lstrip("/"))

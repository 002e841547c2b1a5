"""User-data: by cloud-init's own schema, by shellcheck, and run at a machine's first boot."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from apt_repository import Package, Signer, nvidia_packages, serving
from debian_machine import DebianMachine, debian_machine
from maestrale.machine.setup.cloud_init import LARGEST, SCRIPT_FILE, user_data
from maestrale.machine.setup.plan import SetupOptions
from maestrale.machine.setup.whole import SetupRequest, set_up
from setup_notes import DRIVER, VERSION, Notes

pytestmark = pytest.mark.slow
SOURCES = [
    None,
    "registry.example.org/maestrale:0.1.0-cuda",
    "git+https://example.org/maestrale.git@v0.1.0",
    "==0.1.0",
]


@pytest.fixture(scope="module")
def machine() -> Iterator[DebianMachine]:
    with debian_machine() as one:
        yield one


@pytest.mark.parametrize("source", SOURCES)
def test_cloud_init_accepts_it(machine: DebianMachine, source: str | None) -> None:
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
@pytest.mark.parametrize("cpu", [False, True], ids=["gpu", "cpu"])
def test_its_script_is_sound_shell(source: str | None, cpu: bool, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    document = yaml.safe_load(user_data(SetupOptions(cpu=cpu), source))
    script = tmp_path / "script"
    script.write_text(document["write_files"][0]["content"])
    # SC2016: pieces for another shell are quoted on purpose. SC1091: os-release is the machine's.
    # SC2154: and sets these. SC2034, SC2317, SC2329: of two recipes one is used.
    left_out = "SC2016,SC1091,SC2154,SC2034,SC2317,SC2329"
    done = subprocess.run(
        ["shellcheck", "-s", "sh", "-e", left_out, script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_first_boot_leaves_what_setup_leaves(tmp_path: Path) -> None:
    signers = [Signer(tmp_path / name, name) for name in ("nvidia", "debian")]
    debs = tmp_path / "debs"
    debs.mkdir()
    nvidia_debs = [each.build(debs, tmp_path / "w") for each in nvidia_packages("580", VERSION)]
    docker = '#!/bin/sh\n[ "$1" = --version ] && echo "Docker version 20.10.24"\n'
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
        options = SetupOptions(
            nvidia_repository=nvidia.url, nvidia_key=signers[0].public, wait_for_apt=0.5
        )
        for file in yaml.safe_load(user_data(options, None))["write_files"]:
            path = machine.root / file["path"].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file["content"])
            path.chmod(int(file["permissions"], 8))
        said = machine.run(f"RETRY_SECONDS=0 {SCRIPT_FILE} 2>&1")
        installed = machine.installed()
        assert {name: installed.get(name) for name in DRIVER} == dict.fromkeys(DRIVER, VERSION), (
            said
        )
        # The other way to set a machine up finds nothing left to do.
        result = set_up(machine.target, SetupRequest(options, proof=False), Notes())
        assert [one.doing for one in result.outcomes if one.changed] == []
        machine.run(f"RETRY_SECONDS=0 {SCRIPT_FILE}")
        assert machine.installed() == installed
    for signer in signers:
        signer.close()

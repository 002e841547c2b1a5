"""What apt and dpkg say when they fail, and what a person is told."""

from __future__ import annotations

import pytest

from maestrale.errors import (
    DiskFull,
    NoNetwork,
    PackagesBroken,
    PackagesLocked,
    RepositoryRefused,
    SetupError,
)
from maestrale.machine.setup.failures import explain
from maestrale.machine.setup.reboot import resume_unit

OUTPUTS: list[tuple[type[SetupError], str]] = [
    (
        PackagesLocked,
        "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 812 (apt-get)\n"
        "E: Unable to acquire the dpkg frontend lock, is another process using it?",
    ),
    (DiskFull, "E: You don't have enough free space in /var/cache/apt/archives/."),
    (
        DiskFull,
        "dpkg: error processing archive x.deb (--unpack):\n cannot copy extracted data: "
        "failed to write (No space left on device)\nE: Sub-process /usr/bin/dpkg returned an error",
    ),
    (
        NoNetwork,
        "W: Failed to fetch http://deb.debian.org/debian/dists/bookworm/InRelease  Temporary "
        "failure resolving 'deb.debian.org'",
    ),
    (NoNetwork, "maestrale: key unreachable: https://nvidia.github.io/libnvidia-container/gpgkey"),
    (
        RepositoryRefused,
        "W: GPG error: http://127.0.0.1:8000  InRelease: The following signatures couldn't be "
        "verified because the public key is not available: NO_PUBKEY 5E1B\n"
        "E: The repository 'http://127.0.0.1:8000  InRelease' is not signed.",
    ),
    (RepositoryRefused, "maestrale: wrong key: 0123"),
    (PackagesBroken, "E: Unable to locate package nvidia-utils-580-server"),
    (
        PackagesBroken,
        "Some packages could not be installed.\nE: Unable to correct problems, you "
        "have held broken packages.",
    ),
    (PackagesBroken, "Error! Bad return status for module build on kernel: 6.1.0-18-amd64"),
]


@pytest.mark.parametrize(("kind", "output"), OUTPUTS)
def test_each_failure_is_told_for_what_it_is(kind: type[SetupError], output: str) -> None:
    error = explain("NVIDIA driver", "root@gpu", output)
    assert type(error) is kind
    assert str(error).startswith("NVIDIA driver, on root@gpu: ")
    assert output.splitlines()[0][:60] in str(error) or output.splitlines()[-1][:60] in str(error)
    assert "run this again" in str(error)


def test_what_is_unknown_is_shown() -> None:
    error = explain("Docker: docker.io", "this machine", "something\nodd happened\n")
    assert type(error) is SetupError
    assert "odd happened" in str(error)


def test_the_unit_that_goes_on_after_a_reboot() -> None:
    text = resume_unit(["/opt/a b/python", "-m", "maestrale", "setup"], {"PYTHONPATH": "/x%y"})
    assert "ExecStart='/opt/a b/python' -m maestrale setup\n" in text
    assert 'Environment="PYTHONPATH=/x%%y"' in text
    assert "--reboot" not in text.partition("[Unit]")[2]


def test_paths_and_signs_mean_the_same_after_a_reboot() -> None:
    text = resume_unit(["python", "--source", "./my$dir"], {}, "/srv/50% off")
    assert "WorkingDirectory=-/srv/50%% off\n" in text
    assert "ExecStart=python --source './my$$dir'\n" in text

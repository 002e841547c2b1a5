"""The image as a service: what is written on the machine, and what stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

import pytest

from maestrale.errors import MachineError
from maestrale.machine.processes import Completed
from maestrale.machine.setup.service import UNIT_PATH, check_service, start_service
from maestrale.machine.target import Target
from maestrale.machine.unit import environment_file

IMAGE = "maestrale:0.1.0-cuda"


@dataclass
class Written(Target):
    """A machine that keeps what is written to it; systemd says `active` of the service."""

    files: dict[str, str] = field(default_factory=dict)
    active: str = "active"
    started: int = 0

    def run(
        self,
        script: str,
        *,
        input: str | bytes | BinaryIO | None = None,
        timeout: float = 60.0,
        as_root: bool = False,
    ) -> Completed:
        if "is-active" in script:
            return Completed(0, f"{self.active}\n", "")
        if "systemctl restart" in script:
            self.started += 1
            return Completed(0 if self.active != "broken" else 1, "", "no")
        if isinstance(input, str):
            path = next(one for one in (UNIT_PATH, environment_file("maestrale")) if one in script)
            same = self.files.get(path) == input
            self.files[path] = input
            return Completed(0, "same\n" if same else "", "")
        return Completed(0, "252\n" if "--version" in script else "1048576\n", "")


def test_it_starts_once_and_again_only_when_something_changed() -> None:
    machine = Written()
    assert start_service(machine, IMAGE, gpu=True)
    assert not start_service(machine, IMAGE, gpu=True)
    assert start_service(machine, IMAGE, gpu=False)
    assert machine.started == 2
    assert IMAGE in machine.files[UNIT_PATH]


def test_secrets_of_before_stay_where_none_are_given() -> None:
    machine = Written()
    start_service(machine, IMAGE, gpu=True, secrets={"HF_TOKEN": "t"})
    start_service(machine, IMAGE, gpu=True, model="m")
    assert machine.files[environment_file("maestrale")] == 'HF_TOKEN="t"\n'
    assert "--model m" in machine.files[UNIT_PATH]


def test_a_service_that_does_not_start_or_failed_is_told() -> None:
    with pytest.raises(MachineError, match="can't be started"):
        start_service(Written(active="broken"), IMAGE, gpu=True)
    check_service(Written())
    with pytest.raises(MachineError, match="failed"):
        check_service(Written(active="failed"))

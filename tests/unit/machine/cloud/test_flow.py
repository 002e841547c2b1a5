"""Going on with a machine that was begun: only as what it was made as."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maestrale.errors import SettingsError
from maestrale.machine.cloud.flow import check_same
from maestrale.machine.cloud.machine_spec import MachineSpec
from maestrale.machine.cloud.providers import find_provider
from maestrale.machine.cloud.records import MachineRecord

RECORD = MachineRecord(
    "box",
    "aws",
    "us-east-1",
    "p5",
    "H100",
    9.0,
    "sk-1",
    model="a/b",
    count=2,
    disk=100,
    autostop=60,
)
SPEC = MachineSpec("box", (find_provider("aws"),), "h100", 2, autostop=60, model="a/b")


def test_the_same_command_goes_on_and_so_does_another_model() -> None:
    check_same(SPEC, RECORD)
    check_same(replace(SPEC, region="us-east-1", model="c/d"), RECORD)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"count": 1}, "2 x H100 on AWS"),
        ({"gpu": "", "count": 0}, "2 x H100 on AWS"),
        ({"clouds": (find_provider("do"),)}, "on AWS"),
        ({"region": "eu-central-1"}, "--region us-east-1"),
        ({"disk": 200}, "--disk 100"),
        ({"spot": True}, "--spot left out"),
        ({"autostop": 0}, "--autostop 60"),
        ({"image": "ami-1"}, "--image left out"),
        ({"domain": "api.example.com"}, "--domain left out"),
    ],
)
def test_what_was_settled_when_it_was_made_is_not_quietly_ignored(
    changed: dict[str, object], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        check_same(replace(SPEC, **changed), RECORD)  # type: ignore[arg-type]


def test_a_containers_model_is_in_its_task_file() -> None:
    container = replace(RECORD, cloud="runpod")
    pod = replace(SPEC, clouds=(find_provider("runpod"),))
    check_same(pod, container)
    with pytest.raises(SettingsError, match="--model a/b"):
        check_same(replace(pod, model="c/d"), container)

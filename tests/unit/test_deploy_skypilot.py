"""The file for SkyPilot: its scripts are shell, no secret has a value, no port is open."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from maestrale.config import settings as config
from serving import ROOT

TASK = yaml.safe_load((ROOT / "deploy/skypilot/cluster.yaml").read_text())


@pytest.mark.parametrize("part", ["setup", "run"])
def test_its_scripts_are_shell(part: str) -> None:
    checked = subprocess.run(["sh", "-n"], input=TASK[part].encode(), capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_ray_asks_for_a_token_and_nothing_is_open() -> None:
    assert TASK["envs"]["RAY_AUTH_MODE"] == "token"
    assert TASK["secrets"]["RAY_AUTH_TOKEN"] is None
    assert "ports" not in TASK["resources"]


def test_the_flags_of_serve_are_known() -> None:
    words = TASK["run"].replace("\\\n", " ").partition("./maestrale serve")[2].split()
    flags = {word for word in words if word.startswith("--")}
    assert flags <= {config.flag(name) for name in config.fields()}
    assert "--ray-address" in flags

"""What can't be had is refused before anything is asked or made."""

from __future__ import annotations

from typing import Any

import pytest

from maestrale.errors import SettingsError
from maestrale.machine.cloud.machine_spec import MachineSpec, check, possible
from maestrale.machine.cloud.providers import (
    PROVIDERS,
    find_provider,
    gpu_name,
    region_name,
)


def spec(cloud: str | None, **more: Any) -> MachineSpec:
    clouds = (find_provider(cloud),) if cloud else tuple(PROVIDERS.values())
    return MachineSpec(**{"name": "box", "clouds": clouds, "gpu": "H100", "count": 1, **more})


@pytest.mark.parametrize(
    ("cloud", "more", "said"),
    [
        ("paperspace", {"spot": True}, "no spot machines"),
        ("lambda", {"image": "x"}, "can't start"),
        ("runpod", {"image": "x"}, "given by --source"),
        ("kubernetes", {"domain": "api.example.com"}, "ports 80 and 443"),
        ("aws", {"image": "ami-1"}, "--region"),
        ("paperspace", {"disk": 120}, "100, 250, 500"),
        ("do", {"image": "my-snapshot"}, "a snapshot's number"),
        ("paperspace", {"image": "Ubuntu 22.04"}, "a template's id"),
        ("gcp", {"image": "maestrale"}, "an image's path"),
        ("azure", {"image": "maestrale"}, "an image's id"),
        (None, {"region": "ny2"}, "--cloud"),
        (None, {"image": "x"}, "--cloud"),
        ("do", {"domain": "localhost"}, "no domain name"),
        ("do", {"name": "No_Name"}, "lower-case"),
        ("do", {"name": "x" * 41}, "at most 40"),
    ],
)
def test_what_a_cloud_cannot_do(cloud: str | None, more: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check(spec(cloud, **more))


@pytest.mark.parametrize(
    ("cloud", "more"),
    [
        ("paperspace", {"image": "tabc123", "disk": 250}),
        ("aws", {"image": "ami-1", "region": "eu-central-1", "spot": True}),
        ("gcp", {"image": "projects/p-1/global/images/maestrale"}),
        ("azure", {"image": "/subscriptions/1/x/images/maestrale"}),
        ("do", {"image": "123456"}),
        ("runpod", {"spot": True}),
        ("lambda", {"domain": "api.example.com"}),
        (None, {"spot": True}),
    ],
)
def test_what_it_can(cloud: str | None, more: dict[str, Any]) -> None:
    check(spec(cloud, **more))


def test_without_a_cloud_only_those_that_can() -> None:
    assert {one.name for one in possible(spec(None, spot=True))} == {"aws", "gcp", "azure"}
    assert "paperspace" not in {one.name for one in possible(spec(None, disk=120))}
    assert not any(one.container for one in possible(spec(None)))


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [("A5000", "RTXA5000", 1), ("a5000:2", "RTXA5000", 2), ("A100-80GB:8", "A100-80GB", 8)],
)
def test_gpu_names(text: str, name: str, count: int) -> None:
    assert gpu_name(text) == (name, count)


@pytest.mark.parametrize("text", ["", "A100:", "A100:0", "A100:x", "A100;ls", "A100:-1"])
def test_what_is_no_gpu(text: str) -> None:
    with pytest.raises(SettingsError, match="--gpu"):
        gpu_name(text)


def test_names_of_clouds_and_regions() -> None:
    assert find_provider("DigitalOcean").name == "do"
    assert region_name(PROVIDERS["paperspace"], "NY2") == "East Coast (NY2)"
    assert region_name(PROVIDERS["aws"], "us-east-1") == "us-east-1"
    with pytest.raises(SettingsError, match="paperspace"):
        find_provider("gradient")

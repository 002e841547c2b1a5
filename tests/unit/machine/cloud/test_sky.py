"""Against the real SkyPilot, without an account: its parser, catalogue, optimizer and clients."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_machine import sky_python, write_catalogue
from maestrale.errors import CloudRefused, MachineError, NoCredentials, NoSuchOffer
from maestrale.machine.cloud import offers, task
from maestrale.machine.cloud.machine_spec import MachineSpec
from maestrale.machine.cloud.offers import Offer
from maestrale.machine.cloud.pilot import WORKER, Pilot
from maestrale.machine.cloud.providers import CATALOGUE_ROWS, PROVIDERS, find_provider
from serving import ROOT

pytestmark = pytest.mark.slow
GIVEN = [(task.KEY, "sk-1")]
A5000 = Offer("paperspace", "West Coast (CA1)", "A5000", "RTXA5000", 1, 8, 45, False, 1.38)
OFFERS = {
    "paperspace": A5000,
    "do": Offer("do", "nyc2", "gpu-h100x1-80gb", "H100", 1, 20, 240, False, 3.39),
    "lambda": Offer(
        "lambda", "us-east-1", "gpu_1x_a100_sxm4", "A100-80GB", 1, 30, 200, False, 1.29
    ),
    "runpod": Offer("runpod", "US", "1x_RTXA5000_SECURE", "RTXA5000", 1, 9, 25, True, 0.2),
    "kubernetes": Offer("kubernetes", "", "", "A100", 1, None, None, False, 0.0),
}


def spec(cloud: str, **more: Any) -> MachineSpec:
    return MachineSpec(
        **{
            "name": "box",
            "clouds": (find_provider(cloud),),
            "gpu": OFFERS[cloud].gpu,
            "count": 1,
            "spot": OFFERS[cloud].spot,
            "autostop": 30,
            "model": "mistralai/Mistral-7B-Instruct-v0.2",
            **more,
        }
    )


def yaml_of(cloud: str, **more: Any) -> str:
    return task.task_yaml(spec(cloud, **more), OFFERS[cloud], image="host.example/m:1-pod")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sky")
    write_catalogue(folder / "state")
    (folder / "home").mkdir()
    return folder


@pytest.fixture(scope="module")
def pilot(folder: Path) -> Iterator[Pilot]:
    environment = {**os.environ, "HOME": str(folder / "home")}
    with Pilot(sky_python(), folder / "state", folder / "log", environment) as pilot:
        yield pilot


@pytest.fixture(scope="module")
def facts(folder: Path) -> dict[str, Any]:
    """What SkyPilot says of itself and of our task files."""
    files = folder / "tasks"
    files.mkdir()
    for cloud in ("paperspace", "do", "lambda", "runpod"):
        (files / f"{cloud}.yaml").write_text(yaml_of(cloud))
    (files / "rows.json").write_text(json.dumps(CATALOGUE_ROWS))
    state = folder / "facts-state"
    write_catalogue(state)
    (folder / "facts-home").mkdir()
    done = subprocess.run(
        [sky_python(), ROOT / "tests/support/sky_facts.py", WORKER, files],
        env={
            **os.environ,
            "HOME": str(folder / "facts-home"),
            "SKY_RUNTIME_DIR": str(state),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "PYTHONPATH": "",
            "PYTHONPYCACHEPREFIX": str(sky_python().parents[1] / "bytecode"),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_our_table_is_what_skypilot_says(facts: dict[str, Any]) -> None:
    for name, can in facts["abilities"].items():
        ours = PROVIDERS[name]
        assert (ours.spot, ours.stops) == (can["spot"], can["stops"]), name
        if ours.container:
            assert can["image"], name  # the container's
        elif name != "paperspace":  # there by its own API
            assert bool(ours.image) == can["image"], name
    assert not facts["abilities"]["paperspace"]["image"]


def test_the_optimizer_takes_the_machine_that_was_offered(facts: dict[str, Any]) -> None:
    for cloud, best in facts["optimized"].items():
        offer = OFFERS[cloud]
        assert best["cloud"] == cloud
        assert (best["region"], best["instance"]) == (offer.region, offer.instance)
        assert best["price"] == pytest.approx(offer.price)
        assert best["spot"] == offer.spot


def test_paperspace_is_asked_for_a_static_address_and_a_template(facts: dict[str, Any]) -> None:
    before, after = facts["asked"]
    # Why we do it: SkyPilot alone asks for neither.
    assert before["publicIpType"] == "dynamic"
    assert before["templateId"] is None
    assert after == {**before, "publicIpType": "static", "templateId": "t0abc"}


@pytest.mark.parametrize("cloud", OFFERS)
def test_the_parser_takes_the_task_file(pilot: Pilot, tmp_path: Path, cloud: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(yaml_of(cloud))
    [got] = pilot.call("check", yaml=str(path), secrets=GIVEN, rows=CATALOGUE_ROWS)
    offer = OFFERS[cloud]
    assert got["accelerators"] == {offer.gpu: 1}
    assert got.get("use_spot", False) == offer.spot
    assert got["infra"].startswith(cloud)
    assert got["autostop"]["down"] == (cloud in ("lambda", "runpod", "kubernetes"))
    if PROVIDERS[cloud].container:
        # By region; the null of "any" is written as text when it comes as JSON.
        assert list(got["image_id"].values()) == ["docker:host.example/m:1-pod"]


def test_ports_and_disks(pilot: Pilot, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(yaml_of("do", domain="api.example.com", disk=250, autostop=0))
    [got] = pilot.call("check", yaml=str(path))
    assert got["disk_size"] == 250
    assert [str(port) for port in got["ports"]] == ["80", "443"]
    assert "run:" not in path.read_text()


def test_a_snapshot_is_looked_up_with_the_account(pilot: Pilot, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(yaml_of("do", image="123456"))
    assert 'image_id: "123456"' in path.read_text()
    with pytest.raises(NoCredentials, match="doctl auth init"):
        pilot.call("check", yaml=str(path), secrets=GIVEN)


def test_a_task_that_the_parser_refuses(pilot: Pilot, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(yaml_of("paperspace").replace("A5000", "A9999"))
    with pytest.raises(CloudRefused, match="A9999"):
        pilot.call("check", yaml=str(path), secrets=GIVEN, rows=CATALOGUE_ROWS)


def test_offers_are_sorted_by_price(pilot: Pilot) -> None:
    anywhere = MachineSpec("box", tuple(PROVIDERS.values()), "H100", 1)
    market = offers.ask(pilot, anywhere)
    found = [(one.cloud, one.price) for one in market.offers]
    assert found == [("do", 3.39), ("paperspace", 5.95)]
    # Clouds whose catalogue isn't here, or who don't sell it, say so.
    assert set(market.problems) == {"lambda", "aws", "gcp", "azure"}
    assert "no 1 x H100" in market.problems["lambda"]
    assert "can't be fetched" in market.problems["aws"]


def test_the_gists_machine_is_offered(pilot: Pilot) -> None:
    market = offers.ask(pilot, spec("paperspace", spot=False))
    assert {one.region for one in market.offers} == {"East Coast (NY2)", "West Coast (CA1)"}
    assert A5000 in market.offers


@pytest.mark.parametrize(
    ("cloud", "more", "said"),
    [
        ("paperspace", {"gpu": "B9000"}, "no 1 x B9000"),
        ("lambda", {"region": "mars-1"}, "mars-1"),
        ("runpod", {"count": 64, "spot": True}, "no 64 x RTXA5000 as spot"),
    ],
)
def test_what_no_one_sells(pilot: Pilot, cloud: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(NoSuchOffer, match=said):
        offers.ask(pilot, spec(cloud, **more))


def test_without_credentials_each_cloud_says_why(pilot: Pilot) -> None:
    answers = pilot.call("credentials", clouds=["paperspace", "lambda", "runpod"])
    assert all(answers.values())
    assert "Credentials not found" in answers["paperspace"]


def test_no_server_is_started_and_the_users_own_state_is_left_alone(
    pilot: Pilot, folder: Path
) -> None:
    pilot.call("status", names=["box"])
    assert (folder / "state" / ".sky" / "state.db").exists()
    assert not (folder / "home" / ".sky" / "state.db").exists()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
                mine = str(folder).encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            assert not (mine and b"sky.server" in words)


def test_a_worker_that_ends_is_a_clear_failure(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Illegal instruction' >&2\nexit 132\n")
    python.chmod(0o755)
    with (
        Pilot(python, tmp_path / "state", tmp_path / "log", {}) as broken,
        pytest.raises(MachineError, match="Illegal instruction"),
    ):
        broken.call("status", names=[])

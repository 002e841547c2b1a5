"""deploy/docker/compose.yaml: what Compose, Prometheus and the disk say of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

from serving import ROOT

FOLDER = ROOT / "deploy/docker"
COMPOSE = shutil.which("docker-compose")
needs_compose = pytest.mark.skipif(not COMPOSE, reason="docker-compose is not installed")


def config(*options: str, **variables: str) -> dict[str, Any]:
    """The services as Compose reads them, interpolated."""
    assert COMPOSE
    done = subprocess.run(
        [COMPOSE, *options, "config"],
        cwd=FOLDER,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # The plugin writes JSON on request, the older program YAML only.
    read = "import sys, json, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"
    loaded = subprocess.run(
        ["/usr/bin/python3", "-c", read],
        input=done.stdout,
        capture_output=True,
        text=True,
        check=True,
    )
    services: dict[str, Any] = json.loads(loaded.stdout)["services"]
    return services


@needs_compose
def test_the_service_is_closed_and_on_loopback() -> None:
    service = config()["maestrale"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "127.0.0.1" in json.dumps(service["ports"])
    asked = config(PUBLISH="0.0.0.0:80", SERVE_OPTIONS="--model a/b --max-num-seqs 4")["maestrale"]
    assert "0.0.0.0" in json.dumps(asked["ports"])
    words = asked["command"]
    words = words.split() if isinstance(words, str) else words
    assert words == ["--model", "a/b", "--max-num-seqs", "4"]


@needs_compose
def test_every_image_is_pinned_and_every_file_is_there() -> None:
    services = config("--profile", "monitoring", "--profile", "https")
    assert set(services) == {"maestrale", "prometheus-volume", "prometheus", "grafana", "caddy"}
    for service in services.values():
        name, _, tag = service["image"].rpartition(":")
        assert name
        assert tag[-1].isdigit() or tag.endswith("-cpu")
        for mount in service.get("volumes", []):
            source = mount["source"] if isinstance(mount, dict) else mount.split(":")[0]
            assert not source.startswith("/") or Path(source).exists()


def everything(**variables: str) -> dict[str, Any]:
    return config("--profile", "monitoring", "--profile", "https", **variables)


@needs_compose
def test_every_service_is_bounded_and_closed() -> None:
    for name, service in everything().items():
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert config(MEMORY_LIMIT="3g")["maestrale"]["mem_limit"] != config()["maestrale"]["mem_limit"]


@needs_compose
def test_prometheus_sees_the_key_and_none_of_the_data() -> None:
    services = everything()

    def volumes(name: str) -> set[str]:
        mounts = services[name]["volumes"]
        return {one["source"] if isinstance(one, dict) else one.split(":")[0] for one in mounts}

    assert "key" in volumes("prometheus")
    assert "data" not in volumes("prometheus")
    assert {"data", "key"} <= volumes("maestrale")
    place = services["maestrale"]["environment"]["MAESTRALE_MADE_KEY_FILE"]
    assert place == "/key/api-key"
    assert all("data" not in volumes(name) for name in services if name != "maestrale")


@needs_compose
def test_grafana_has_no_password_that_everybody_knows() -> None:
    grafana = everything()["grafana"]["environment"]
    assert grafana["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/maestrale/password"
    assert "GF_SECURITY_ADMIN_PASSWORD" not in grafana
    made = everything()["prometheus-volume"]
    assert not made["environment"]["GRAFANA_PASSWORD"]
    given = everything(GRAFANA_PASSWORD="as I like")["prometheus-volume"]
    assert given["environment"]["GRAFANA_PASSWORD"] == "as I like"


def prepare_volumes(folder: Path, **variables: str) -> str:
    """Run the script of the service that prepares volumes, on folders of our own."""
    text = (FOLDER / "compose.yaml").read_text()
    script = textwrap.dedent(text.partition("      - |\n")[2].partition("    network_mode")[0])
    script = script.replace("$$", "$").replace("/grafana", str(folder / "grafana"))
    script = script.replace("/prometheus", str(folder / "prometheus"))
    script = re.sub(r"\bchown [0-9:]+ ", "true ", script)
    for name in ("grafana", "prometheus"):
        (folder / name).mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "GRAFANA_PASSWORD": "", **variables}
    done = subprocess.run(
        ["sh", "-euc", script], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_grafanas_password_is_made_once_or_given(tmp_path: Path) -> None:
    file = tmp_path / "grafana/password"
    shown = prepare_volumes(tmp_path)
    made = file.read_text()
    assert len(made) >= 20
    assert made in shown
    assert file.stat().st_mode & 0o777 == 0o600
    assert prepare_volumes(tmp_path) == ""
    assert file.read_text() == made
    assert prepare_volumes(tmp_path, GRAFANA_PASSWORD="as I like") == ""
    assert file.read_text() == "as I like"


@needs_compose
def test_gpus_are_asked_for_in_a_file_of_their_own() -> None:
    service = config("-f", "compose.yaml", "-f", "compose.gpu.yaml")["maestrale"]
    assert service["image"].endswith("-cuda")
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="prometheus is not installed")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    key = tmp_path / "api-key"
    key.write_text("sk-x")
    text = (FOLDER / "prometheus.yml").read_text()
    assert "credentials_file: /maestrale/api-key" in text
    path = tmp_path / "prometheus.yml"
    path.write_text(text.replace("/maestrale/api-key", str(key)))
    shutil.copy(ROOT / "deploy/grafana/alerts.yml", tmp_path)
    done = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

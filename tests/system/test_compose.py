"""deploy/docker/compose.yaml: what Compose, Prometheus and the disk say of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
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

"""The file for Kubernetes, against KubeRay's own schema."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from maestrale.config.reading import load_settings
from maestrale.config.settings import Settings
from maestrale.errors import SettingsError
from maestrale.serve.kuberay import RAY_VERSION, manifests, replica_settings, text
from serving import ROOT, clean_environment

SCHEMA = json.loads((ROOT / "tests/data/kuberay/rayservice-v1.json").read_text())
IMAGE = "registry.example/maestrale:1"


def settings(**flags: Any) -> Settings:
    return load_settings({"engine": "cpu", **flags}, {}, None)


def unknown(value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Fields that the schema doesn't have, which jsonschema lets pass and Kubernetes refuses."""
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from unknown(each, schema.get("items", {}), f"{where}[{index}]")
    if not isinstance(value, dict) or "x-kubernetes-preserve-unknown-fields" in schema:
        return
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name, each in value.items():
        if name in known:
            yield from unknown(each, known[name], f"{where}.{name}")
        elif others is None and known:
            yield f"{where}.{name}"


def check(service: dict[str, Any]) -> None:
    jsonschema.validate(service, SCHEMA)
    assert list(unknown(service["spec"], SCHEMA["properties"]["spec"])) == []


def of_kind(kind: str, documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (each for each in documents if each["kind"] == kind)
    return found


def container(service: dict[str, Any], group: str) -> dict[str, Any]:
    cluster = service["spec"]["rayClusterConfig"]
    place = cluster["headGroupSpec"] if group == "head" else cluster["workerGroupSpecs"][0]
    found: dict[str, Any] = place["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"replicas": "2-8", "api_workers": "4", "threads": "6"},
        {"engine": "vllm", "model": "mistralai/Mistral-7B-Instruct-v0.2", "replicas": "3",
         "tensor_parallel_size": "2", "pipeline_parallel_size": "2", "dtype": "bfloat16",
         "served_model_name": ("one", "two"), "deterministic": "false"},
    ],
    ids=["plain", "cpu", "gpu"],
)  # fmt: skip
def test_the_schema_of_kuberay_accepts_it(flags: dict[str, Any]) -> None:
    written = text(manifests(settings(**flags), IMAGE))
    check(of_kind("RayService", list(yaml.safe_load_all(written))))


def test_the_check_can_fail() -> None:
    service = of_kind("RayService", manifests(settings(), IMAGE))
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["nodes"] = 1
    with pytest.raises(AssertionError):
        check(service)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**service, "spec": {}}, SCHEMA)


def test_replicas_get_their_settings_and_room() -> None:
    asked = settings(
        engine="vllm", model="org/large", replicas="2-5", tensor_parallel_size="2",
        pipeline_parallel_size="2", max_model_len="8192", api_key=("sk-secret",), port="9000",
    )  # fmt: skip
    service = of_kind("RayService", manifests(asked, IMAGE))
    serve = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = serve["applications"]
    assert application["args"] == {
        "model": "org/large", "engine": "vllm", "replicas": "2-5", "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2, "max_model_len": 8192,
    }  # fmt: skip
    again = load_settings({**application["args"], "ray_address": "auto"}, {}, None)
    assert replica_settings(again) == application["args"]
    assert container(service, "worker")["resources"]["limits"]["nvidia.com/gpu"] == "4"
    group = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 5)
    assert service["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is True


def test_no_secret_is_in_it_and_ray_is_shut() -> None:
    documents = manifests(settings(api_key=("sk-secret",)), IMAGE)
    assert "sk-secret" not in text(documents)
    service = of_kind("RayService", documents)
    assert service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    (named,) = (e for e in container(service, "head")["env"] if e["name"] == "MAESTRALE_API_KEY")
    assert "secretKeyRef" in named["valueFrom"]
    rules = of_kind("NetworkPolicy", documents)["spec"]["ingress"]
    (open_to_all,) = (rule for rule in rules if "from" not in rule)
    assert open_to_all["ports"] == [{"protocol": "TCP", "port": 8000}]


def test_api_processes_on_every_node_are_refused() -> None:
    with pytest.raises(SettingsError, match="knows no --api-nodes"):
        manifests(settings(api_nodes="all", ray_address="auto"), IMAGE)


def test_the_head_serves_what_was_asked_for() -> None:
    asked = settings(api_workers="3", max_waiting="17", served_model_name=("a b",))
    service = of_kind("RayService", manifests(asked, IMAGE))
    (script,) = container(service, "head")["args"]
    for part in ("--ray-join", "--api-workers 3", "--max-waiting 17", "'a b'"):
        assert part in script
    syntax = subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True)
    assert syntax.returncode == 0, syntax.stderr


def test_what_cannot_be_carried_over_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--engine cpu or --engine vllm"):
        manifests(settings(engine="auto"), IMAGE)
    with pytest.raises(SettingsError, match=r"can't begin at no replica \(--replicas 0-2\)"):
        manifests(settings(replicas="0-2"), IMAGE)
    template = tmp_path / "chat.jinja"
    template.touch()
    with pytest.raises(SettingsError, match="--chat-template"):
        manifests(settings(chat_template=str(template)), IMAGE)


def test_the_version_of_ray_is_the_locked_one() -> None:
    assert f"ray=={RAY_VERSION}" in (ROOT / "locks/dev.lock").read_text()


def test_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "maestrale", "serve", "--engine", "cpu", "--replicas", "2",
         "--emit-kuberay", "--image", IMAGE],
        env=clean_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    check(of_kind("RayService", list(yaml.safe_load_all(result.stdout))))
    assert IMAGE in result.stdout

"""The file that puts `maestrale serve` on Kubernetes: KubeRay's RayService, a Service, a policy.

    head pod     Ray's head; beside it in the same container the API (`maestrale serve`)
    worker pods  the replicas, one a pod, deployed by the RayService from `serveConfigV2`

The API joins the replicas that the RayService deployed. Ray asks for a token, which KubeRay makes;
the API asks for a key, which lies in a Secret; the policy lets nothing in but the API's port.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from maestrale import __version__
from maestrale.cluster.options import app_name
from maestrale.config import settings as config
from maestrale.config.settings import Settings
from maestrale.errors import SettingsError

APPLICATION = "maestrale.serve.cluster_application:build"
NAME = "maestrale"
RAY_VERSION = "2.60.0"
"""Of the extra ray; KubeRay decides by it what it may ask of Ray."""
API_PORT = 8000
PROXY_PORT = 8001
"""Of Ray Serve's proxies, which answer KubeRay's health checks and nothing else."""
KEY_SECRET, KEY_ENTRY = "maestrale-api-key", "key"
HUB_SECRET, HUB_ENTRY = "huggingface-token", "token"
CACHE = "/home/maestrale/.cache"
CPUS_OF_GPU_REPLICA = 4
# Not the replicas' business, or the pods' own: left out of what is handed on.
NOT_FOR_REPLICAS = {
    *("host", "port", "api_key", "key_file", "no_auth", "allowed_origins", "allowed_hosts"),
    *("ssl_certfile", "ssl_keyfile", "chat_template", "api_workers", "api_nodes", "cache_dir"),
    *("ray_address", "ray_token_file", "ray_join"),
}
FILES = ("ssl_certfile", "ssl_keyfile", "chat_template", "key_file")


def manifests(settings: Settings, image: str) -> list[dict[str, Any]]:
    """The documents, in the order in which they are applied.

    Raises: SettingsError for a setting that can't be carried over.
    """
    if settings.engine not in ("cpu", "vllm"):
        raise SettingsError(
            "--emit-kuberay needs --engine cpu or --engine vllm: what this machine has says "
            "nothing of the cluster's."
        )
    if settings.api_nodes != "this":
        raise SettingsError(
            "--emit-kuberay knows no --api-nodes: the Service leads to the head's pod alone. For "
            "more API processes there give --api-workers."
        )
    if settings.replica_range is not None and settings.replica_range[0] == 0:
        raise SettingsError(
            f"--emit-kuberay can't begin at no replica (--replicas {settings.replicas}): it is the "
            "RayService that deploys them, and the API can't ask it for the first one. Give a "
            "range from 1."
        )
    for name in FILES:
        if getattr(settings, name) is not None:
            raise SettingsError(
                f"--emit-kuberay can't carry the file of {config.flag(name)} over: mount it into "
                "the head's pod from a Secret or ConfigMap, and add the flag to its command."
            )
    return [_service(), _policy(), _ray_service(settings, image)]


def text(documents: list[dict[str, Any]]) -> str:
    """As YAML, led by what must be there before it is applied."""
    import yaml

    head = (
        f"# maestrale {__version__} on Kubernetes, by KubeRay 1.6 or newer. Before:\n"
        f"#   kubectl create secret generic {KEY_SECRET} --from-literal={KEY_ENTRY}=sk-...\n"
        "# and for a gated model:\n"
        f"#   kubectl create secret generic {HUB_SECRET} --from-literal={HUB_ENTRY}=hf_...\n"
    )
    parts = [yaml.dump(each, Dumper=_dumper(), sort_keys=False, width=100) for each in documents]
    return head + "---\n".join(["", *parts])


def replica_settings(settings: Settings) -> dict[str, Any]:
    """What was set of the settings that the replicas need, as JSON has it, by name."""
    found = {}
    plain = Settings(cache_dir=settings.cache_dir)
    for name in config.fields():
        value = getattr(settings, name)
        if name not in NOT_FOR_REPLICAS and value != getattr(plain, name):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _ray_service(settings: Settings, image: str) -> dict[str, Any]:
    least, most = settings.replica_range or (1, 1)
    serve_config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": PROXY_PORT},  # noqa: S104 - see the policy
        "applications": [
            {
                "name": app_name(settings.model, settings.revision),
                "route_prefix": None,
                "import_path": APPLICATION,
                "args": {**replica_settings(settings), "replicas": f"{least}-{most}"},
            }
        ],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": NAME,
            "annotations": {"ray.io/overwrite-container-cmd": "true"},
        },
        "spec": {
            "serveConfigV2": _yaml(serve_config),
            "rayClusterConfig": {
                "rayVersion": RAY_VERSION,
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": most > least,
                "headGroupSpec": {
                    # No replica shares the head's pod: the API and Ray have it for themselves.
                    "rayStartParams": {"num-cpus": "0"},
                    "template": _pod(_head(settings, image)),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "replicas",
                        "replicas": least,
                        "minReplicas": least,
                        "maxReplicas": most,
                        "rayStartParams": {},
                        "template": _pod(_worker(settings, image)),
                    }
                ],
            },
        },
    }


def _head(settings: Settings, image: str) -> dict[str, Any]:
    serve = ["python", "-P", "-m", "maestrale", "serve", *_flags(settings)]
    script = (
        "ulimit -n 65536; "
        "$KUBERAY_GEN_RAY_START_CMD & "
        "until ray health-check >/dev/null 2>&1; do sleep 1; done; "
        # Ray's end is the pod's end, and so is the API's.
        f"{shlex.join(serve)} & "
        "wait -n; kill $(jobs -p); wait"
    )
    cpus = str(2 + settings.api_workers)
    return {
        "name": "ray-head",
        "image": image,
        "command": ["/bin/bash", "-c", "--"],
        "args": [script],
        "env": [
            *_environment(),
            {
                "name": "MAESTRALE_API_KEY",
                "valueFrom": {"secretKeyRef": {"name": KEY_SECRET, "key": KEY_ENTRY}},
            },
        ],
        "ports": [
            {"containerPort": API_PORT, "name": "api"},
            {"containerPort": PROXY_PORT, "name": "serve"},
            {"containerPort": 6379, "name": "gcs-server"},
            {"containerPort": 8265, "name": "dashboard"},
        ],
        "resources": _resources({"cpu": cpus, "memory": f"{4 + settings.api_workers}Gi"}),
        "volumeMounts": _mounts(),
        "securityContext": _confined(),
    }


def _worker(settings: Settings, image: str) -> dict[str, Any]:
    room: dict[str, str] = {}
    if settings.engine == "vllm":
        gpus = (settings.tensor_parallel_size or 1) * (settings.pipeline_parallel_size or 1)
        room = {"cpu": str(CPUS_OF_GPU_REPLICA), "memory": "16Gi", "nvidia.com/gpu": str(gpus)}
    else:
        room = {"cpu": str(settings.threads or 2), "memory": "8Gi"}
    return {
        "name": "ray-worker",
        "image": image,
        "command": ["/bin/bash", "-c", "--"],
        "args": ["ulimit -n 65536; exec $KUBERAY_GEN_RAY_START_CMD"],
        "env": _environment(),
        "ports": [{"containerPort": PROXY_PORT, "name": "serve"}],
        "resources": _resources(room),
        "volumeMounts": _mounts(),
        "securityContext": _confined(),
    }


def _flags(settings: Settings) -> list[str]:
    """The command line of the API in the head's pod."""
    fixed: dict[str, Any] = {
        "host": "0.0.0.0",  # noqa: S104 - a pod's address is not known before
        "port": API_PORT,
        "ray_address": "auto",
        "ray_join": True,
    }
    flags: list[str] = []
    plain = Settings(cache_dir=settings.cache_dir)
    for name in config.fields():
        value = fixed.get(name, getattr(settings, name))
        if name in ("api_key", "cache_dir") or value == getattr(plain, name):
            continue
        flag = config.flag(name)
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            flags += [part for each in value for part in (flag, str(each))]
        else:
            flags += [flag, str(value)]
    return flags


def _pod(container: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": NAME}},
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": [
                {"name": "cache", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory"}},
            ],
        },
    }


def _environment() -> list[dict[str, Any]]:
    token = {"name": HUB_SECRET, "key": HUB_ENTRY, "optional": True}
    return [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}},
        {"name": "XDG_CACHE_HOME", "value": CACHE},
    ]


def _mounts() -> list[dict[str, Any]]:
    return [
        {"name": "cache", "mountPath": CACHE},
        {"name": "memory", "mountPath": "/dev/shm"},  # noqa: S108 - Ray's object store
    ]


def _resources(room: dict[str, str]) -> dict[str, Any]:
    return {"limits": room, "requests": dict(room)}


def _confined() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{NAME}-api"},
        "spec": {
            "selector": {"app": NAME, "ray.io/node-type": "head"},
            "ports": [{"name": "api", "port": API_PORT, "targetPort": API_PORT}],
        },
    }


def _policy() -> dict[str, Any]:
    """Ray runs the code of whoever reaches it: its own pods, and KubeRay's operator."""
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": NAME},
        "spec": {
            "podSelector": {"matchLabels": {"app": NAME}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [{"protocol": "TCP", "port": API_PORT}]},
                {"from": [{"podSelector": {"matchLabels": {"app": NAME}}}]},
                {
                    "from": [operator],
                    "ports": [
                        {"protocol": "TCP", "port": port} for port in (8265, 52365, PROXY_PORT)
                    ],
                },
            ],
        },
    }


def _yaml(value: dict[str, Any]) -> str:
    import yaml

    # Through JSON: what the cluster can't read must not get there.
    return str(yaml.dump(json.loads(json.dumps(value)), Dumper=_dumper(), sort_keys=False))


def _dumper() -> Any:
    """PyYAML's safe one, with texts of several lines as blocks and no anchors."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def shown(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, shown)
    return Dumper

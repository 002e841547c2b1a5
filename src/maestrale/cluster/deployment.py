"""The Ray Serve application: deployed, watched while it starts, taken away."""

from __future__ import annotations

import platform
import re
import threading
from typing import Any

import msgspec
import ray
from msgspec import Struct
from ray import serve
from ray._private.state import available_resources_per_node
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

import maestrale
from maestrale.cluster import stages
from maestrale.cluster.options import APP, DEFAULT_SEQUENCES, ClusterOptions
from maestrale.cluster.replica import EngineReplica, StartFailed
from maestrale.cluster.router import PrefixRouter
from maestrale.cluster.runtime import ray_version
from maestrale.cluster.wire import DEPLOYMENT, ReplicaSpec
from maestrale.engines.base import EngineConfig
from maestrale.errors import EngineError

ATTEMPTS = 3
KEYS = b"maestrale"
"""The namespace of what is noted on the cluster."""
BUSY_SHARE = 0.7
"""Of what a replica decodes at once: with more than that on each, another one is started."""
HEALTH_PERIOD = 1.0
HEALTH_TIMEOUT = 10.0
_ONE_AT_A_TIME = threading.Lock()
"""Ray Serve packs a deployment's parts, from the first on, by what is no thing for threads."""


class Deployed(Struct, frozen=True):
    """What was deployed last, and by which API process: noted on the cluster."""

    api: str
    config: EngineConfig
    options: ClusterOptions


def deploy(wanted: Deployed) -> Deployed | None:
    """Ask Ray Serve for the replicas; they start after this returns. Blocks for a moment.

    Returns what was there before, which they replace, if anything was.
    Raises: EngineError when the nodes can't ever hold a replica.
    """
    options = wanted.options
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    spread = stages.span_nodes(options, nodes)
    before = deployed(options.app)
    with _ONE_AT_A_TIME:
        target = serve.RunTarget(
            target=application(wanted.config, options, wanted.api, spread=spread),
            name=options.app,
            route_prefix=None,
        )
        serve.run_many([target], wait_for_applications_running=False)
    # Ray Serve's own time of deployment stays that of the first.
    note = msgspec.msgpack.encode(msgspec.structs.replace(wanted, options=_portable(options)))
    _internal_kv_put(_key(options.app), note, overwrite=True, namespace=KEYS)
    return before


def deployed(app: str) -> Deployed | None:
    """What servers deployed last. Blocks."""
    note = _internal_kv_get(_key(app), namespace=KEYS)
    if note is None or app not in serve.status().applications:
        return None
    try:
        return msgspec.msgpack.decode(note, type=Deployed)
    except msgspec.DecodeError:  # by another version
        return None


def _portable(options: ClusterOptions) -> ClusterOptions:
    return msgspec.structs.replace(options, token_file=None)


def others(app: str) -> list[str]:
    """The applications of ours beside this one, which take room on the cluster. Blocks."""
    return [name for name in _applications() if name != app]


def _applications() -> list[str]:
    """Ours, on this cluster."""
    return sorted(name for name in serve.status().applications if name.startswith(APP))


def application(
    config: EngineConfig, options: ClusterOptions, api: str = "", *, spread: bool = False
) -> serve.Application:
    """The replicas, as Ray Serve deploys them; `api` is the process that does. `spread`: the
    stages of each may lie on several nodes.
    """
    spec = ReplicaSpec(
        config=config,
        model=options.model,
        version=maestrale.__version__,
        ray=ray_version(),
        python=platform.python_version(),
        revision=options.revision,
        cache_dir=options.cache_dir,
        tune=options.address is not None,
        pin=options.pin,
        stage_gpus=options.stage_gpus if spread else 0,
        deployed_by=api,
    )
    sequences = config.max_num_seqs or DEFAULT_SEQUENCES
    counted: dict[str, Any] = {"num_replicas": options.least}
    if options.most > options.least:
        counted = {"autoscaling_config": autoscaling(options, sequences)}
    deployment = serve.deployment(
        EngineReplica,
        name=DEPLOYMENT,
        # The engine has its own queue, and `api/` its own: Ray Serve's must hold nobody back,
        # least of all an abort.
        max_ongoing_requests=1_000_000,
        max_constructor_retry_count=ATTEMPTS,
        health_check_period_s=HEALTH_PERIOD,
        health_check_timeout_s=HEALTH_TIMEOUT,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=options.drain,
        **_room(options, spread),
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, initial_backoff_s=0.02, max_backoff_s=0.2
        ),
        **counted,
    )
    return deployment.bind(msgspec.msgpack.encode(spec))


def autoscaling(options: ClusterOptions, sequences: int) -> AutoscalingConfig:
    """Ray Serve's own, on the requests of each replica, running and waiting.

    The stream that each API process keeps open to a replica counts as one.
    """
    return AutoscalingConfig(
        min_replicas=options.least,
        initial_replicas=options.least,
        max_replicas=options.most,
        target_ongoing_requests=max(1.0, BUSY_SHARE * sequences) + _api_processes(options),
        upscale_delay_s=options.upscale_delay,
        downscale_delay_s=options.downscale_delay,
        metrics_interval_s=min(5.0, max(0.5, options.upscale_delay / 2)),
        look_back_period_s=min(10.0, max(2.0, options.upscale_delay)),
    )


def _api_processes(options: ClusterOptions) -> int:
    """At this moment: a node that joins later makes replicas look a request busier each."""
    if not options.api_everywhere:
        return options.api_processes
    return max(1, sum(1 for each in ray.nodes() if each["Alive"]))


def _room(options: ClusterOptions, spread: bool) -> dict[str, Any]:
    """What Ray reserves for a replica. On one node all of it is its actor's, so that the engine
    process and those that vLLM starts for its parallel parts see just these GPUs.
    """
    if not spread:
        return {"ray_actor_options": {"num_cpus": options.cpus, "num_gpus": options.gpus}}
    return {
        "ray_actor_options": {"num_cpus": options.cpus, "num_gpus": 0},
        "placement_group_bundles": stages.bundles(options),
        "placement_group_strategy": stages.STRATEGY,
    }


def handle(app: str) -> DeploymentHandle[Any]:
    """Raises: EngineError when there is no such application."""
    try:
        return serve.get_deployment_handle(DEPLOYMENT, app)
    except Exception as error:
        there = ", ".join(_applications()) or "none"
        raise EngineError(
            f"There is no application {app} on the Ray cluster (of maestrale's there: {there}). "
            "--ray-join takes the replicas that another server deployed for the same --model and "
            "--revision; start that one first, or leave --ray-join out."
        ) from error


def trouble(app: str) -> tuple[str, bool]:
    """What keeps replicas from starting, in words, and whether Ray Serve gave up. Blocks."""
    status = serve.status().applications.get(app)
    if status is None:
        return "", False
    messages = [status.message]
    given_up = str(status.status.value) == "DEPLOY_FAILED"
    for deployment in status.deployments.values():
        messages.append(deployment.message)
    said = "\n".join(messages)
    if given_up:
        return reason(said), True
    waits = stages.waits_for(said, list(available_resources_per_node().values()))
    return waits or reason(said), False


def reason(message: str) -> str:
    """Our own words out of Ray Serve's message, which is a traceback; else its last line."""
    begin, end = re.escape(StartFailed.BEGIN), re.escape(StartFailed.END)
    found = re.findall(f"{begin}(.*?){end}", message, re.DOTALL)
    if found:
        return str(found[-1]).strip()
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def remove(app: str) -> None:
    """Take the application away; its replicas end. Blocks."""
    serve.delete(app)
    _internal_kv_del(_key(app), namespace=KEYS)


def _key(app: str) -> bytes:
    return f"deployed-by:{app}".encode()

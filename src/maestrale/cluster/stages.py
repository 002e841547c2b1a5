"""A replica whose GPUs lie on several nodes: the stages of its pipeline, each on one node.

    node A, two GPUs                         node B, two GPUs
    bundle 0: the replica's actor, stage 1   bundle 2: stage 2
    bundle 1: stage 1                        bundle 3: stage 2

Where a node has all GPUs of a replica, its actor asks for them, and vLLM starts a process for each.
Where none has, Ray Serve reserves a placement group: a bundle for each GPU, as vLLM's Ray executor
wants it, which starts an actor in each. Ray fills one node after another (PACK), and can't be told
which GPUs belong to one stage: so the replica looks at what it got before it starts its engine.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import ray
from ray.util.placement_group import get_current_placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from maestrale.cluster.node import folder_there
from maestrale.cluster.options import ClusterOptions
from maestrale.cluster.wire import ReplicaSpec
from maestrale.engines.base import ReservedGpus
from maestrale.errors import EngineError

STRATEGY = "PACK"
WITHOUT_BOUND = 1 << 20
"""Replicas on a node for which nothing is reserved."""
NodeResources = Mapping[str, float]
"""What a node has of each resource, used or not."""


def bundles(options: ClusterOptions) -> list[dict[str, float]]:
    """What is reserved for one replica: a bundle for each GPU; in the first its actor's CPUs."""
    return [{"CPU": options.cpus, "GPU": 1.0}, *({"GPU": 1.0} for _ in range(options.gpus - 1))]


def span_nodes(options: ClusterOptions, nodes: Sequence[NodeResources]) -> bool:
    """Whether the GPUs of a replica shall lie on several nodes: where not all replicas find a node
    each that has all of theirs, and more of them find room so.

    Raises: EngineError when there would be no room for one even if the cluster were idle.
    """
    whole, spread = rooms(options, nodes)
    if not whole and not spread:
        raise EngineError(_no_room(options, nodes))
    return whole < options.most and spread > whole


def rooms(options: ClusterOptions, nodes: Sequence[NodeResources]) -> tuple[int, int]:
    """How many replicas these nodes hold: each on one node, and with stages on any of them."""
    whole = sum(_fit(node, options.cpus, options.gpus) for node in nodes)
    if options.stages == 1:
        return whole, 0
    stages = sum(_fit(node, 0.0, options.stage_gpus) for node in nodes)
    actors = sum(_fit(node, options.cpus, options.stage_gpus) for node in nodes)
    return whole, min(stages // options.stages, actors)


def _fit(node: NodeResources, cpus: float, gpus: int) -> int:
    asked = {"CPU": cpus, "GPU": float(gpus)}
    fits = (node.get(name, 0.0) // each for name, each in asked.items() if each)
    return int(min(fits, default=WITHOUT_BOUND))


def _no_room(options: ClusterOptions, nodes: Sequence[NodeResources]) -> str:
    asked = f"{options.cpus:g} CPU" + (f", {options.gpus} GPU" if options.gpus else "")
    said = [f"No node of the cluster has room for a replica, which takes {asked}."]
    if options.stages > 1:
        room = sum(_fit(node, 0.0, options.stage_gpus) for node in nodes)
        said.append(
            f"Nor have several: each of its {options.stages} stages takes {options.stage_gpus} GPU "
            f"of one node, and there is room for {room}."
        )
    flags = "--threads"
    if options.gpus:
        flags += ", --tensor-parallel-size, --pipeline-parallel-size"
    said.append(f"The nodes have: {_listed(nodes)}. Ask for less ({flags}), or add a larger node.")
    return " ".join(said)


def waits_for(message: str, free: Sequence[NodeResources]) -> str:
    """What Ray Serve says of a replica that waits for room, with where there is how much; "" for
    other messages. `free`: of each node.
    """
    found = re.search(r"Resources required for each replica: (.*?), total resources", message)
    if found is None:
        return ""
    parts = json.loads(found[1])
    asked: Counter[str] = Counter()
    for part in parts if isinstance(parts, list) else [parts]:
        asked.update(part)
    wanted = ", ".join(f"{count:g} {name}" for name, count in asked.items())
    return f"It waits for room. A replica takes {wanted}; free on the nodes: {_listed(free)}."


def _listed(nodes: Sequence[NodeResources]) -> str:
    return "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)


# In the replica


def reserved_here(stage_gpus: int) -> ReservedGpus:
    """What Ray Serve reserved for the replica in this process. Blocks.

    Raises: EngineError when the GPUs of a stage lie on two nodes.
    """
    group = get_current_placement_group()
    if group is None:
        raise EngineError("Ray Serve gave this replica no placement group.")
    check_whole(_nodes_of(group), stage_gpus)
    return ReservedGpus(
        address=ray.get_runtime_context().gcs_address,
        group=group.id.hex(),
        bundles=tuple(group.bundle_specs),
    )


def check_whole(nodes: Mapping[int, str], stage_gpus: int) -> None:
    """`nodes`: the node of each bundle. vLLM gives the bundles of one node to stage after stage.

    Raises: EngineError when a stage's GPUs would lie on two nodes.
    """
    counts = sorted(Counter(nodes.values()).values(), reverse=True)
    if any(count % stage_gpus for count in counts):
        raise EngineError(
            f"Ray gave this replica {' + '.join(map(str, counts))} GPUs of {len(counts)} nodes, "
            f"and each stage of its pipeline takes {stage_gpus} of one node. Free GPUs on the "
            "nodes, or set --tensor-parallel-size to a number that divides what each has free."
        )


def check_model_on_nodes(spec: ReplicaSpec, folder: str) -> None:
    """Have the replica's other nodes prepare the model: vLLM reads it there by the same path.

    Blocks for as long as they take.
    Raises: EngineError when one can't, or has it elsewhere than in `folder`.
    """
    group, here = get_current_placement_group(), ray.get_runtime_context().get_node_id()
    further = {node: bundle for bundle, node in _nodes_of(group).items() if node != here}
    ask = ray.remote(num_cpus=0, max_retries=0)(folder_there)
    asked = [
        ask.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=bundle
            )
        ).remote(msgspec.msgpack.encode(spec))
        for bundle in further.values()
    ]
    try:
        answers = ray.get(asked)
    except Exception as error:  # Ray's many: the node or its worker is gone
        raise EngineError(
            f"A node of this replica was lost while it prepared the model: {type(error).__name__}."
        ) from error
    for host, theirs, wrong in answers:
        if wrong:
            raise EngineError(wrong)
        if theirs != folder:
            raise EngineError(
                f"The model lies in {theirs} on the node {host}, and here in {folder}. vLLM reads "
                "it by one path on all nodes of a replica: set the same --cache-dir, or run as the "
                "same user, on every node."
            )


def _nodes_of(group: object) -> dict[int, str]:
    found: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return found

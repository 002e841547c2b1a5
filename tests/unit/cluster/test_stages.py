"""Where the GPUs of a replica shall lie, and what is refused. What Ray makes of it:
tests/contract/engines/test_stages.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from maestrale.cluster.options import ClusterOptions
from maestrale.engines.base import EngineConfig
from maestrale.errors import EngineError


@pytest.fixture
def stages() -> Any:
    """Imported here, as it imports Ray."""
    from maestrale.cluster import stages

    return stages


def options(tensor: int, pipeline: int, most: int = 1, cpus: float = 1.0) -> ClusterOptions:
    gpus = tensor * pipeline
    return ClusterOptions(model="m", least=1, most=most, cpus=cpus, gpus=gpus, stages=pipeline)


def nodes(*gpus: int, cpus: int = 8) -> list[dict[str, float]]:
    return [{"CPU": cpus, "GPU": each} if each else {"CPU": cpus} for each in gpus]


@pytest.mark.parametrize(
    ("tensor", "pipeline", "most", "gpus", "spread"),
    [
        (2, 2, 1, (2, 2), True),
        (2, 2, 1, (4,), False),
        (2, 2, 1, (2, 2, 4), False),  # where one node has all of them, on one
        (2, 2, 2, (2, 2, 4), True),  # but the second replica needs the two small ones
        (2, 2, 2, (4, 4), False),
        (2, 2, 3, (4, 4), False),  # no more would fit the other way
        (1, 4, 1, (3, 1), True),
        (1, 2, 1, (0, 1, 1), True),
        (4, 1, 1, (8,), False),
        (1, 1, 9, (1,), False),
    ],
)
def test_one_node_where_that_holds_all_replicas_else_several(
    stages: Any, tensor: int, pipeline: int, most: int, gpus: tuple[int, ...], spread: bool
) -> None:
    assert stages.span_nodes(options(tensor, pipeline, most), nodes(*gpus)) is spread


@pytest.mark.parametrize(
    ("tensor", "pipeline", "gpus", "said"),
    [
        (2, 2, (3, 1), "2 stages takes 2 GPU of one node, and there is room for 1. The nodes"),
        (2, 2, (1, 1, 1, 1), "there is room for 0. The nodes have: 8 CPU, 1 GPU; 8 CPU, 1 GPU;"),
        (4, 1, (2, 2), "which takes 1 CPU, 4 GPU. The nodes have: 8 CPU, 2 GPU; 8 CPU, 2 GPU."),
        (1, 1, (0,), "Ask for less (--threads, --tensor-parallel-size, --pipeline-parallel-size)"),
    ],
)
def test_what_is_missing_is_told(
    stages: Any, tensor: int, pipeline: int, gpus: tuple[int, ...], said: str
) -> None:
    with pytest.raises(EngineError) as caught:
        stages.span_nodes(options(tensor, pipeline), nodes(*gpus))
    assert said in str(caught.value)


def test_the_actors_cpus_count_where_it_would_lie(stages: Any) -> None:
    asked = options(2, 2, cpus=4.0)
    assert stages.span_nodes(asked, [*nodes(2, cpus=1), *nodes(2, cpus=4)])
    with pytest.raises(EngineError, match="takes 4 CPU, 4 GPU"):
        stages.span_nodes(asked, nodes(2, 2, cpus=3))


def test_nothing_is_counted_for_replicas_that_reserve_nothing(stages: Any) -> None:
    asked = ClusterOptions(model="m", least=1, most=9, cpus=0.0)
    assert not stages.span_nodes(asked, nodes(0, cpus=1))


def test_a_replica_without_gpus_needs_cpus_of_one_node(stages: Any) -> None:
    asked = ClusterOptions(model="m", least=1, most=1, cpus=4.0)
    assert not stages.span_nodes(asked, nodes(0, cpus=4))
    with pytest.raises(EngineError, match=r"Ask for less \(--threads\), or add a larger node"):
        stages.span_nodes(asked, [*nodes(0, cpus=3), *nodes(0, cpus=3)])


def test_a_stage_on_two_nodes_is_refused(stages: Any) -> None:
    stages.check_whole({0: "a", 1: "b", 2: "a", 3: "b"}, 2)  # vLLM sorts the bundles by node
    stages.check_whole({0: "a", 1: "a", 2: "a", 3: "b"}, 1)
    stages.check_whole({0: "b", 1: "a", 2: "a", 3: "a", 4: "a", 5: "b"}, 2)
    with pytest.raises(EngineError, match=r"3 \+ 1 GPUs of 2 nodes.* takes 2 of one node"):
        stages.check_whole({0: "a", 1: "a", 2: "a", 3: "b"}, 2)


@pytest.mark.parametrize(
    "required", ['[{"CPU": 1.0, "GPU": 1.0}, {"GPU": 1.0}]', '{"CPU": 1.0, "GPU": 2.0}']
)
def test_a_replica_that_waits_says_for_what(stages: Any, required: str) -> None:
    message = (
        "Deployment 'engine' in application 'm' has 1 replicas that have taken more than 30s to be "
        f"scheduled. Resources required for each replica: {required}, total resources available: "
        "{}. Use `ray status` for more details."
    )
    free = [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}]
    assert stages.waits_for(message, free) == (
        "It waits for room. A replica takes 1 CPU, 2 GPU; free on the nodes: 8 CPU, 0 GPU; "
        "1 CPU, 1 GPU."
    )
    assert stages.waits_for("Another message.", free) == ""


class TestDeployment:
    """What Ray Serve is asked for."""

    def asked(self, *, spread: bool) -> Any:
        config = EngineConfig(engine="vllm", model_dir="/m")
        from maestrale.cluster.deployment import application

        bound = application(config, options(2, 2, cpus=3.0), spread=spread)
        return bound._bound_deployment

    def test_on_one_node_the_actor_has_all(self) -> None:
        deployment = self.asked(spread=False)
        assert deployment.ray_actor_options["num_gpus"] == 4
        assert deployment._replica_config.placement_group_bundles is None

    def test_on_several_it_has_a_bundle_for_each_gpu_and_lies_in_the_first(self) -> None:
        deployment = self.asked(spread=True)
        assert deployment.ray_actor_options["num_cpus"] == 3
        assert deployment.ray_actor_options["num_gpus"] == 0
        assert deployment._replica_config.placement_group_strategy == "PACK"
        first, *others = deployment._replica_config.placement_group_bundles
        assert first == {"CPU": 3.0, "GPU": 1.0}
        assert others == [{"GPU": 1.0}] * 3

"""What the scripted engine does on several nodes: an actor on each of its GPUs, as vLLM has.

They compute nothing. They show that the engine's process can use what Ray reserved for it, and that
engine and actors don't outlive each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from maestrale.engines.base import ReservedGpus
from maestrale.engines.ray_group import placement_group


class GpuActor:
    """On one GPU."""

    def ready(self) -> None:
        pass

    def live(self) -> None:
        """For ever."""
        threading.Event().wait()


def hold(reserved: ReservedGpus, on_loss: Callable[[], None]) -> None:
    """Join the cluster and start the actors; back when all are there. Blocks.

    `on_loss` is called, in another thread, when one of them is gone.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init(address=reserved.address, configure_logging=False, log_to_driver=False)
    group = placement_group(reserved)
    kind = ray.remote(num_cpus=0, num_gpus=1, max_concurrency=2)(GpuActor)
    places = [
        kind.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, number)).remote()
        for number in range(len(reserved.bundles))
    ]
    ray.get([place.ready.remote() for place in places])
    lives = [place.live.remote() for place in places]

    def watch() -> None:
        ray.wait(lives)
        on_loss()

    threading.Thread(target=watch, daemon=True).start()

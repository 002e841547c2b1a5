"""vLLM's Ray executor, for engine cores that must not outlive the process that started them.

The core is Ray's driver of the actors that it starts, on whatever node. When it is gone, Ray ends
them. vLLM must have Ray to import this.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.executor.ray_executor_v2 import RayExecutorV2

from maestrale.engines.vllm.leash import die_with_parent


class LeashedRay(RayExecutorV2):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        die_with_parent()
        super().__init__(*arguments, **named)

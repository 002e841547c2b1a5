"""Which executor vLLM is given: its own, held so that it ends with the process that started it."""

from __future__ import annotations

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from maestrale.engines.vllm.leash import LeashedMultiproc, LeashedUniProc


def leashed(executor: type) -> type:
    """The leashed form of an executor class of vLLM's; any other as it is."""
    if getattr(executor, "uses_ray", False):
        from maestrale.engines.vllm.leash_ray import LeashedRay

        return LeashedRay
    known: dict[type, type] = {
        MultiprocExecutor: LeashedMultiproc,
        UniProcExecutor: LeashedUniProc,
    }
    return known.get(executor, executor)

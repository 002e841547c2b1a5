"""The variables that vLLM reads: set here, before it is imported. None is read here."""

from __future__ import annotations

import os
from pathlib import Path

_FOR_ALL = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # The logits processor of forced.py is written for this runner, CPU and GPU alike.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def prepare_environment(sockets: Path, threads: int | None) -> None:
    """For this process and those that vLLM starts: no telemetry, no downloads, no new processes
    by fork (this one has threads). `sockets`: a folder for theirs. `threads` bounds the CPU build.
    """
    os.environ |= {**_FOR_ALL, "VLLM_RPC_BASE_PATH": str(sockets)}
    # Opens routes and calls that are for development only.
    os.environ.pop("VLLM_SERVER_DEV_MODE", None)
    if threads is not None:
        os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def use_batch_invariant_kernels() -> None:
    """vLLM's mode in which a request's tokens don't depend on what shares its batch (GPUs)."""
    os.environ["VLLM_BATCH_INVARIANT"] = "1"


def use_ray(address: str) -> None:
    """For vLLM's core, which joins the cluster there; its token is in the environment already."""
    os.environ |= {
        "RAY_ADDRESS": address,
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_USE_RAY_V2_EXECUTOR_BACKEND": "1",  # the one that leash_ray.py is made of
    }


def actor_environment(*, invariant: bool) -> dict[str, str]:
    """For vLLM's actors on any node, from their start: the folder of the sockets is of this one.

    All else vLLM copies from its core, once they have begun.
    """
    given = {**_FOR_ALL, "VLLM_RPC_BASE_PATH": "/tmp"}  # noqa: S108 - as vLLM itself does
    return given | ({"VLLM_BATCH_INVARIANT": "1"} if invariant else {})

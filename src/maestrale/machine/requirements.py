"""What the cuda image asks of a machine: the driver branch and the GPUs. The one place for it.

The image carries vLLM (extra `vllm` in pyproject.toml) with the torch that it pins, and torch
carries CUDA. The machine gives only the driver. When the extra moves, look at the version of
`nvidia-cuda-runtime` that torch asks for, and change this file.
"""

from __future__ import annotations

# torch 2.13, which vLLM 0.32 pins, brings nvidia-cuda-runtime 13.0.
CUDA_VERSION = (13, 0)

# The branch that CUDA 13.0 came with, and a long-term one. Every CUDA 13.x runs on it.
DRIVER_BRANCH = 580
# The first release of that branch that NVIDIA lists for CUDA 13.0.
MIN_DRIVER_VERSION = (580, 65, 6)

# CUDA 13 dropped Maxwell, Pascal and Volta; open kernel modules begin with Turing as well.
MIN_COMPUTE_CAPABILITY = (7, 5)
MIN_ARCHITECTURE = "Turing"
# Below it no bfloat16 (vLLM falls back to float16), and no batch-invariant mode.
FULL_COMPUTE_CAPABILITY = (8, 0)
FULL_ARCHITECTURE = "Ampere"

# (distribution, version) that `maestrale setup` knows.
SUPPORTED_DISTRIBUTIONS = {
    ("ubuntu", "22.04"): "Ubuntu 22.04",
    ("ubuntu", "24.04"): "Ubuntu 24.04",
    ("debian", "12"): "Debian 12",
}

# The first Docker with `--gpus`.
MIN_DOCKER_VERSION = (19, 3)

# What set-up itself needs free, in bytes: driver, its build, Docker. The image comes on top.
SETUP_DISK_BYTES = 5 * 2**30


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version: `580.95.05-0ubuntu1` gives (580, 95, 5)."""
    numbers: list[int] = []
    for part in text.strip().split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


def driver_suffices(version: str) -> bool:
    """Whether a driver of this version, such as `580.95.05`, can run the cuda image."""
    return parse_version(version) >= MIN_DRIVER_VERSION

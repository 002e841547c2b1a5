"""GPUs with the memory that CUDA reports: the machine's own, and common ones by their names."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from maestrale import nvidia

MIB = 1 << 20
DRIVER_SHARE = 0.013  # of nvidia-smi's total; 0.7 to 1.7 % on those whose two totals are known
_TIMEOUT = 10.0


@dataclass(frozen=True)
class Gpu:
    """`memory` in bytes, as the driver reports it. `capability`: CUDA's, such as (8, 6)."""

    name: str
    memory: int
    capability: tuple[int, int] | None = None
    free: int | None = None
    cuda_total: int | None = None

    @property
    def visible(self) -> int:
        """Bytes that CUDA reports in all: less than nvidia-smi, as the driver keeps some."""
        return self.cuda_total or round(self.memory * (1 - DRIVER_SHARE))

    @property
    def visible_source(self) -> str:
        if self.cuda_total is not None:
            return "nvidia-smi's total less the capacity that PyTorch reports for this GPU"
        return f"{DRIVER_SHARE:.1%}: what the driver keeps on most GPUs of the table"


def _known(model: nvidia.GpuModel) -> Gpu:
    cuda = None if model.cuda_gib is None else round(model.cuda_gib * (1 << 30))
    told = nvidia.generation(next(iter(model.devices)))
    return Gpu(model.name, model.mib * MIB, told[1] if told else None, cuda_total=cuda)


# Those whose memory is known, by the name that `--gpu` takes.
TABLE = {model.key: _known(model) for model in nvidia.MODELS if model.key}


def find_gpu(name: str) -> Gpu | None:
    """A GPU of the table, by a name such as `A5000`, `rtx 4090`, `NVIDIA L4`."""
    wanted = _plain(name)
    for key, gpu in TABLE.items():
        if wanted in (_plain(key), _plain(gpu.name)):
            return gpu
    return None


def _plain(name: str) -> str:
    text = "".join(char for char in name.casefold() if char.isalnum())
    for prefix in ("nvidia", "geforce", "tesla", "rtx", "gtx", "quadro"):
        text = text.removeprefix(prefix)
    return text


def nvidia_gpus() -> tuple[Gpu, ...]:
    """The machine's NVIDIA GPUs, as nvidia-smi lists them; none where it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = "--query-gpu=name,memory.total,memory.free,compute_cap"
    try:
        done = subprocess.run(  # noqa: S603 (a program of the driver, no shell)
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(gpu for line in done.stdout.splitlines() if (gpu := _parsed(line)) is not None)


def _parsed(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",")]
    try:
        name, total, free, capability = fields
        major, _, minor = capability.partition(".")
        return Gpu(
            name.removeprefix("NVIDIA "),
            int(total) * MIB,
            (int(major), int(minor)),
            int(free) * MIB,
        )
    except ValueError:
        return None

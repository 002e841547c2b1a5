"""GPUs: the machine's own, and a table of common ones with the memory that CUDA reports."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

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


def _row(name: str, mib: int, capability: tuple[int, int], cuda_gib: float | None = None) -> Gpu:
    cuda = None if cuda_gib is None else round(cuda_gib * (1 << 30))
    return Gpu(name, mib * MIB, capability, cuda_total=cuda)


# MiB as nvidia-smi shows them with ECC as it comes from the factory; then, where it is known, the
# GiB that PyTorch's messages give as capacity. Other drivers differ by some MiB.
TABLE = {
    "T4": _row("Tesla T4", 15360, (7, 5), 14.75),
    "V100": _row("Tesla V100 16 GB", 16384, (7, 0), 15.77),
    "V100-32GB": _row("Tesla V100 32 GB", 32768, (7, 0), 31.74),
    "P100": _row("Tesla P100", 16384, (6, 0), 15.9),
    "A2": _row("A2", 15356, (8, 6)),
    "A10": _row("A10", 23028, (8, 6)),
    "A10G": _row("A10G", 23028, (8, 6), 22.06),
    "A16": _row("A16 (one of four)", 15356, (8, 6)),
    "A30": _row("A30", 24576, (8, 0)),
    "A40": _row("A40", 46068, (8, 6)),
    "A100": _row("A100 40 GB", 40960, (8, 0), 39.39),
    "A100-80GB": _row("A100 80 GB", 81920, (8, 0), 79.15),
    "A4000": _row("RTX A4000", 16376, (8, 6), 15.61),
    "A4500": _row("RTX A4500", 20470, (8, 6)),
    "A5000": _row("RTX A5000", 24564, (8, 6), 23.68),
    "A6000": _row("RTX A6000", 49140, (8, 6), 47.53),
    "RTX-3060": _row("GeForce RTX 3060", 12288, (8, 6), 11.76),
    "RTX-3080": _row("GeForce RTX 3080", 10240, (8, 6), 9.77),
    "RTX-3090": _row("GeForce RTX 3090", 24576, (8, 6), 23.69),
    "RTX-4060-Ti-16GB": _row("GeForce RTX 4060 Ti 16 GB", 16380, (8, 9)),
    "RTX-4070": _row("GeForce RTX 4070", 12282, (8, 9)),
    "RTX-4080": _row("GeForce RTX 4080", 16376, (8, 9), 15.7),
    "RTX-4090": _row("GeForce RTX 4090", 24564, (8, 9), 23.65),
    "RTX-5080": _row("GeForce RTX 5080", 16303, (12, 0)),
    "RTX-5090": _row("GeForce RTX 5090", 32607, (12, 0), 31.37),
    "RTX-4000-Ada": _row("RTX 4000 Ada Generation", 20475, (8, 9)),
    "RTX-6000-Ada": _row("RTX 6000 Ada Generation", 49140, (8, 9)),
    "L4": _row("L4", 23034, (8, 9), 22.05),
    "L40": _row("L40", 46068, (8, 9)),
    "L40S": _row("L40S", 46068, (8, 9), 44.39),
    "H100": _row("H100 80 GB", 81559, (9, 0), 79.11),
    "H200": _row("H200", 143771, (9, 0)),
    "GH200": _row("GH200 96 GB", 97871, (9, 0)),
    "B200": _row("B200", 183359, (10, 0)),
}


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

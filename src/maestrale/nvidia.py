"""NVIDIA's GPUs, once for all: what a PCI id is, and how much memory a program sees.

Ids and names from the PCI ID database (data-centre, workstation and common GeForce cards), CUDA's
compute capabilities from NVIDIA's list of its GPUs. Others are told by their range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuModel:
    """One kind of card. `devices`: its PCI ids, with the variant's name where it has one.

    `key` is what `--gpu` calls it, `mib` what nvidia-smi shows with ECC as it comes from the
    factory, `cuda_gib` the capacity in PyTorch's messages; empty, 0, None where not known. Other
    drivers differ by some MiB.
    """

    name: str
    devices: Mapping[int, str]
    key: str = ""
    mib: int = 0
    cuda_gib: float | None = None


def generation(device: int) -> tuple[str, tuple[int, int]] | None:
    """(architecture, compute capability) of a PCI device id."""
    for start, end, family, capability in _RANGES:
        if start <= device <= end:
            return family, capability
    return None


def name_of(device: int) -> str:
    """The name of a PCI device id; empty for one that is not in the table."""
    for model in MODELS:
        if device in model.devices:
            return model.devices[device] or model.name
    return ""


# Device ids follow the chips, so a range tells the architecture of cards not named below.
_RANGES: tuple[tuple[int, int, str, tuple[int, int]], ...] = (
    (0x0FC0, 0x0FFF, "Kepler", (3, 0)),
    (0x1000, 0x103F, "Kepler", (3, 5)),
    (0x1180, 0x11FF, "Kepler", (3, 0)),
    (0x1280, 0x12BF, "Kepler", (3, 5)),
    (0x1340, 0x13BF, "Maxwell", (5, 0)),
    (0x13C0, 0x13FF, "Maxwell", (5, 2)),
    (0x1400, 0x143F, "Maxwell", (5, 2)),
    (0x15F0, 0x15FF, "Pascal", (6, 0)),
    (0x1610, 0x17FF, "Maxwell", (5, 2)),
    (0x1B00, 0x1D7F, "Pascal", (6, 1)),
    (0x1D80, 0x1DFF, "Volta", (7, 0)),
    (0x1E00, 0x1FFF, "Turing", (7, 5)),
    (0x2080, 0x20FF, "Ampere", (8, 0)),
    (0x2180, 0x21FF, "Turing", (7, 5)),
    (0x2200, 0x22FF, "Ampere", (8, 6)),
    (0x2302, 0x23FF, "Hopper", (9, 0)),
    (0x2400, 0x25FF, "Ampere", (8, 6)),
    (0x2600, 0x28FF, "Ada Lovelace", (8, 9)),
    (0x2900, 0x29FF, "Blackwell", (10, 0)),
    (0x2B80, 0x2DFF, "Blackwell", (12, 0)),
    (0x2E00, 0x2E2F, "Blackwell", (12, 1)),
    (0x2F00, 0x2F7F, "Blackwell", (12, 0)),
    (0x3180, 0x31FF, "Blackwell Ultra", (10, 3)),
)

MODELS = (
    GpuModel("Tesla K80", {0x102D: ""}),
    GpuModel("Tesla M60", {0x13F2: ""}),
    GpuModel("Tesla P100 PCIe 12 GB", {0x15F7: ""}),
    GpuModel(
        "Tesla P100",
        {0x15F8: "Tesla P100 PCIe 16 GB", 0x15F9: "Tesla P100 SXM2 16 GB"},
        "P100",
        16384,
        15.9,
    ),
    GpuModel("GeForce GTX 1080 Ti", {0x1B06: ""}),
    GpuModel("Quadro P6000", {0x1B30: ""}),
    GpuModel("Tesla P40", {0x1B38: ""}),
    GpuModel("GeForce GTX 1080", {0x1B80: ""}),
    GpuModel("Quadro P5000", {0x1BB0: ""}),
    GpuModel("Quadro P4000", {0x1BB1: ""}),
    GpuModel("Tesla P4", {0x1BB3: ""}),
    GpuModel(
        "Tesla V100 16 GB",
        {0x1DB1: "Tesla V100 SXM2 16 GB", 0x1DB4: "Tesla V100 PCIe 16 GB"},
        "V100",
        16384,
        15.77,
    ),
    GpuModel(
        "Tesla V100 32 GB",
        {
            0x1DB5: "Tesla V100 SXM2 32 GB",
            0x1DB6: "Tesla V100 PCIe 32 GB",
            0x1DB8: "Tesla V100 SXM3 32 GB",
            0x1DF6: "Tesla V100S PCIe 32 GB",
        },
        "V100-32GB",
        32768,
        31.74,
    ),
    GpuModel("TITAN RTX", {0x1E02: ""}),
    GpuModel("GeForce RTX 2080 Ti", {0x1E04: "", 0x1E07: ""}),
    GpuModel("Quadro RTX 6000", {0x1E30: ""}),
    GpuModel("GeForce RTX 2080", {0x1E82: ""}),
    GpuModel("Quadro RTX 5000", {0x1EB0: ""}),
    GpuModel("Quadro RTX 4000", {0x1EB1: ""}),
    GpuModel("Tesla T4", {0x1EB8: ""}, "T4", 15360, 14.75),
    GpuModel(
        "A100 40 GB", {0x20B0: "A100 SXM4 40 GB", 0x20F1: "A100 PCIe 40 GB"}, "A100", 40960, 39.39
    ),
    GpuModel(
        "A100 80 GB",
        {0x20B2: "A100 SXM4 80 GB", 0x20B5: "A100 PCIe 80 GB"},
        "A100-80GB",
        81920,
        79.15,
    ),
    GpuModel("A30", {0x20B7: ""}, "A30", 24576),
    GpuModel("GeForce RTX 3090 Ti", {0x2203: ""}),
    GpuModel("GeForce RTX 3090", {0x2204: ""}, "RTX-3090", 24576, 23.69),
    GpuModel("GeForce RTX 3080", {0x2206: ""}, "RTX-3080", 10240, 9.77),
    GpuModel("GeForce RTX 3080 Ti", {0x2208: ""}),
    GpuModel("RTX A6000", {0x2230: ""}, "A6000", 49140, 47.53),
    GpuModel("RTX A5000", {0x2231: ""}, "A5000", 24564, 23.68),
    GpuModel("RTX A4500", {0x2232: ""}, "A4500", 20470),
    GpuModel("RTX A5500", {0x2233: ""}),
    GpuModel("A40", {0x2235: ""}, "A40", 46068),
    GpuModel("A10", {0x2236: ""}, "A10", 23028),
    GpuModel("A10G", {0x2237: ""}, "A10G", 23028, 22.06),
    GpuModel("H100 NVL", {0x2321: ""}),
    GpuModel("H800 PCIe", {0x2322: ""}),
    GpuModel("H800", {0x2324: ""}),
    GpuModel("H20", {0x2329: ""}),
    GpuModel(
        "H100 80 GB",
        {0x2330: "H100 SXM5 80 GB", 0x2331: "H100 PCIe", 0x2339: "H100"},
        "H100",
        81559,
        79.11,
    ),
    GpuModel("H200", {0x2335: ""}, "H200", 143771),
    GpuModel("H200 NVL", {0x233B: ""}),
    GpuModel("GH200 96 GB", {0x2342: "GH200", 0x2345: "GH200"}, "GH200", 97871),
    GpuModel("GH200 144 GB", {0x2348: ""}),
    GpuModel("GeForce RTX 3070", {0x2484: "", 0x2488: ""}),
    GpuModel("GeForce RTX 3060 Ti", {0x2489: ""}),
    GpuModel("RTX A4000", {0x24B0: ""}, "A4000", 16376, 15.61),
    GpuModel("GeForce RTX 3060", {0x2503: "", 0x2504: ""}, "RTX-3060", 12288, 11.76),
    GpuModel("RTX A2000", {0x2531: ""}),
    GpuModel("RTX A2000 12 GB", {0x2571: ""}),
    GpuModel("A16 (one of four)", {0x25B6: "A2 / A16"}, "A16", 15356),
    GpuModel("A2", {0x25B6: "A2 / A16"}, "A2", 15356),
    GpuModel("GeForce RTX 4090", {0x2684: ""}, "RTX-4090", 24564, 23.65),
    GpuModel("RTX 6000 Ada Generation", {0x26B1: ""}, "RTX-6000-Ada", 49140),
    GpuModel("RTX 5000 Ada Generation", {0x26B2: ""}),
    GpuModel("L40", {0x26B5: ""}, "L40", 46068),
    GpuModel("L40S", {0x26B9: ""}, "L40S", 46068, 44.39),
    GpuModel("L20", {0x26BA: ""}),
    GpuModel("GeForce RTX 4080 SUPER", {0x2702: ""}),
    GpuModel("GeForce RTX 4080", {0x2704: ""}, "RTX-4080", 16376, 15.7),
    GpuModel("GeForce RTX 4070 Ti", {0x2782: ""}),
    GpuModel("GeForce RTX 4070", {0x2786: ""}, "RTX-4070", 12282),
    GpuModel("RTX 4000 SFF Ada Generation", {0x27B0: ""}),
    GpuModel("RTX 4500 Ada Generation", {0x27B1: ""}),
    GpuModel("RTX 4000 Ada Generation", {0x27B2: ""}, "RTX-4000-Ada", 20475),
    GpuModel("L4", {0x27B8: ""}, "L4", 23034, 22.05),
    GpuModel("GeForce RTX 4060 Ti", {0x2803: ""}),
    GpuModel("GeForce RTX 4060 Ti 16 GB", {0x2805: ""}, "RTX-4060-Ti-16GB", 16380),
    GpuModel("GeForce RTX 4060", {0x2882: ""}),
    GpuModel("B200", {0x2901: ""}, "B200", 183359),
    GpuModel("GB200", {0x2941: ""}),
    GpuModel("GeForce RTX 5090", {0x2B85: ""}, "RTX-5090", 32607, 31.37),
    GpuModel("RTX PRO 6000 Blackwell Workstation Edition", {0x2BB1: ""}),
    GpuModel("RTX PRO 5000 Blackwell", {0x2BB3: ""}),
    GpuModel("RTX PRO 6000 Blackwell Server Edition", {0x2BB5: ""}),
    GpuModel("GeForce RTX 5080", {0x2C02: ""}, "RTX-5080", 16303),
    GpuModel("GeForce RTX 5070 Ti", {0x2C05: ""}),
    GpuModel("RTX PRO 4500 Blackwell", {0x2C31: ""}),
    GpuModel("RTX PRO 4000 Blackwell", {0x2C34: ""}),
    GpuModel("GB10", {0x2E12: ""}),
    GpuModel("GeForce RTX 5070", {0x2F04: ""}),
    GpuModel("B300", {0x3182: ""}),
    GpuModel("GB300", {0x31C2: "", 0x31C3: ""}),
)

"""GPUs by their PCI ids: what is in the machine, also without a driver or lspci.

Ids and names from the PCI ID database (data-centre, workstation and common GeForce cards), CUDA's
compute capabilities from NVIDIA's list of its GPUs. Others are told by their range.
"""

from __future__ import annotations

from dataclasses import dataclass

VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}


@dataclass(frozen=True)
class PciGpu:
    """`ids` are vendor and device: ("0x10de", "0x2230"). `driver`: the kernel's, or empty.

    `name`, `architecture` and `capability` (CUDA's) are empty or None where the table has none.
    """

    slot: str
    ids: tuple[str, str]
    vendor: str  # nvidia, amd, intel, or the id
    driver: str
    name: str
    architecture: str
    capability: tuple[int, int] | None

    @property
    def title(self) -> str:
        known = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}.get(self.vendor, "a vendor")
        if self.name:
            return f"{known} {self.name}"
        kind = f" ({self.architecture})" if self.architecture else ""
        return f"{known} GPU, PCI id {self.ids[0][2:]}:{self.ids[1][2:]}{kind}"


def pci_gpu(slot: str, vendor: str, device: str, driver: str) -> PciGpu:
    """The GPU of these ids (`0x10de`, `0x2230`)."""
    name, architecture, capability = "", "", None
    if vendor == "0x10de":
        number = int(device, 16)
        name = NVIDIA.get(number, "")
        for start, end, family, cuda in _RANGES:
            if start <= number <= end:
                architecture, capability = family, cuda
                break
    short = VENDORS.get(vendor, vendor)
    return PciGpu(slot, (vendor, device), short, driver, name, architecture, capability)


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

NVIDIA: dict[int, str] = {
    0x102D: "Tesla K80",
    0x13F2: "Tesla M60",
    0x15F7: "Tesla P100 PCIe 12 GB",
    0x15F8: "Tesla P100 PCIe 16 GB",
    0x15F9: "Tesla P100 SXM2 16 GB",
    0x1B06: "GeForce GTX 1080 Ti",
    0x1B30: "Quadro P6000",
    0x1B38: "Tesla P40",
    0x1B80: "GeForce GTX 1080",
    0x1BB0: "Quadro P5000",
    0x1BB1: "Quadro P4000",
    0x1BB3: "Tesla P4",
    0x1DB1: "Tesla V100 SXM2 16 GB",
    0x1DB4: "Tesla V100 PCIe 16 GB",
    0x1DB5: "Tesla V100 SXM2 32 GB",
    0x1DB6: "Tesla V100 PCIe 32 GB",
    0x1DB8: "Tesla V100 SXM3 32 GB",
    0x1DF6: "Tesla V100S PCIe 32 GB",
    0x1E02: "TITAN RTX",
    0x1E04: "GeForce RTX 2080 Ti",
    0x1E07: "GeForce RTX 2080 Ti",
    0x1E30: "Quadro RTX 6000",
    0x1E82: "GeForce RTX 2080",
    0x1EB0: "Quadro RTX 5000",
    0x1EB1: "Quadro RTX 4000",
    0x1EB8: "Tesla T4",
    0x20B0: "A100 SXM4 40 GB",
    0x20B2: "A100 SXM4 80 GB",
    0x20B5: "A100 PCIe 80 GB",
    0x20B7: "A30",
    0x20F1: "A100 PCIe 40 GB",
    0x2203: "GeForce RTX 3090 Ti",
    0x2204: "GeForce RTX 3090",
    0x2206: "GeForce RTX 3080",
    0x2208: "GeForce RTX 3080 Ti",
    0x2230: "RTX A6000",
    0x2231: "RTX A5000",
    0x2232: "RTX A4500",
    0x2233: "RTX A5500",
    0x2235: "A40",
    0x2236: "A10",
    0x2237: "A10G",
    0x2321: "H100 NVL",
    0x2322: "H800 PCIe",
    0x2324: "H800",
    0x2329: "H20",
    0x2330: "H100 SXM5 80 GB",
    0x2331: "H100 PCIe",
    0x2335: "H200",
    0x2339: "H100",
    0x233B: "H200 NVL",
    0x2342: "GH200",
    0x2345: "GH200",
    0x2348: "GH200 144 GB",
    0x2484: "GeForce RTX 3070",
    0x2488: "GeForce RTX 3070",
    0x2489: "GeForce RTX 3060 Ti",
    0x24B0: "RTX A4000",
    0x2503: "GeForce RTX 3060",
    0x2504: "GeForce RTX 3060",
    0x2531: "RTX A2000",
    0x2571: "RTX A2000 12 GB",
    0x25B6: "A2 / A16",
    0x2684: "GeForce RTX 4090",
    0x26B1: "RTX 6000 Ada Generation",
    0x26B2: "RTX 5000 Ada Generation",
    0x26B5: "L40",
    0x26B9: "L40S",
    0x26BA: "L20",
    0x2702: "GeForce RTX 4080 SUPER",
    0x2704: "GeForce RTX 4080",
    0x2782: "GeForce RTX 4070 Ti",
    0x2786: "GeForce RTX 4070",
    0x27B0: "RTX 4000 SFF Ada Generation",
    0x27B1: "RTX 4500 Ada Generation",
    0x27B2: "RTX 4000 Ada Generation",
    0x27B8: "L4",
    0x2803: "GeForce RTX 4060 Ti",
    0x2805: "GeForce RTX 4060 Ti 16 GB",
    0x2882: "GeForce RTX 4060",
    0x2901: "B200",
    0x2941: "GB200",
    0x2B85: "GeForce RTX 5090",
    0x2BB1: "RTX PRO 6000 Blackwell Workstation Edition",
    0x2BB3: "RTX PRO 5000 Blackwell",
    0x2BB5: "RTX PRO 6000 Blackwell Server Edition",
    0x2C02: "GeForce RTX 5080",
    0x2C05: "GeForce RTX 5070 Ti",
    0x2C31: "RTX PRO 4500 Blackwell",
    0x2C34: "RTX PRO 4000 Blackwell",
    0x2E12: "GB10",
    0x2F04: "GeForce RTX 5070",
    0x3182: "B300",
    0x31C2: "GB300",
    0x31C3: "GB300",
}

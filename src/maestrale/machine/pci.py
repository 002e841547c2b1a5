"""GPUs by their PCI ids: what is in the machine, also without a driver or lspci."""

from __future__ import annotations

from dataclasses import dataclass

from maestrale import nvidia

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
    name, architecture = "", ""
    capability: tuple[int, int] | None = None
    if vendor == "0x10de":
        number = int(device, 16)
        name = nvidia.name_of(number)
        architecture, capability = nvidia.generation(number) or ("", None)
    short = VENDORS.get(vendor, vendor)
    return PciGpu(slot, (vendor, device), short, driver, name, architecture, capability)

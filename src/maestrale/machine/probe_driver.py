"""NVIDIA's driver, from what the probe wrote about it."""

from __future__ import annotations

import re

from maestrale.machine.facts import Driver, DriverGpu
from maestrale.machine.sections import Sections

_VERSION = re.compile(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b")
_CUDA = re.compile(r"CUDA (?:UMD )?Version\s*:\s*(\d+)\.(\d+)")
# The newest CUDA of each release branch, for drivers that are not loaded: NVIDIA's release notes.
CUDA_OF_BRANCH = {
    390: (9, 1),
    418: (10, 1),
    440: (10, 2),
    450: (11, 0),
    460: (11, 2),
    465: (11, 3),
    470: (11, 4),
    495: (11, 5),
    510: (11, 6),
    515: (11, 7),
    520: (11, 8),
    525: (12, 0),
    530: (12, 1),
    535: (12, 2),
    545: (12, 3),
    550: (12, 4),
    555: (12, 5),
    560: (12, 6),
    565: (12, 7),
    570: (12, 8),
    575: (12, 9),
    580: (13, 0),
    590: (13, 1),
}
# Packages whose version is the driver's; the dots keep container-toolkit packages out.
_PACKAGES = re.compile(
    r"(nvidia-driver(-\d+|-cuda)?(-server)?(-open)?|nvidia-headless-(no-dkms-)?\d+.*|cuda-drivers.*"
    r"|nvidia-open(-\d+)?|nvidia-kernel-(open-)?(dkms|common).*|nvidia-(dkms|utils)-\d+.*)"
)


def read_driver(sections: Sections, packages: dict[str, str]) -> Driver | None:
    """None when there is no trace of a driver."""
    module = sections["nvidia-module"]
    kernel_line = module.lines[0] if module.ok and module.lines else ""
    loaded = _first(kernel_line)
    on_disk = _first(sections["modinfo"].text) if sections["modinfo"].ok else ""
    packaged = next((_first(v) for n, v in packages.items() if _PACKAGES.fullmatch(n)), "")
    installed = on_disk or packaged
    said = sections["nvidia-smi"]
    if not (loaded or installed or sections["nvidia-programs"].ok):
        return None
    answers = said.ok
    failure = ""
    if "nvidia-smi" not in sections:
        failure = "missing"
    elif said.hung:
        failure = "timeout"
    elif not answers:
        failure = " ".join(said.lines)[:300]
    if not loaded and answers:  # WSL: the driver is Windows'
        match = re.search(r"Driver Version\s*:\s*([\d.]+)", said.text)
        loaded = match[1] if match else ""
    found = _CUDA.search(said.text) if answers else None
    cuda = (int(found[1]), int(found[2])) if found else _of_branch(loaded or installed)
    return Driver(
        loaded=loaded,
        installed=installed,
        answers=answers,
        failure=failure,
        cuda=cuda,
        gpus=_gpus(sections),
        open_modules="Open Kernel Module" in kernel_line,
    )


def _gpus(sections: Sections) -> tuple[DriverGpu, ...]:
    section = sections["gpus"]
    if section.ok:
        return tuple(gpu for line in section.lines if (gpu := _gpu(line)) is not None)
    # Drivers before 510 don't know compute_cap: the table that nvidia-smi prints has the rest.
    table = sections["nvidia-smi"].text
    names = re.findall(r"^\|\s+\d+\s+(\S.*?)\s+(?:On|Off|N/A)\s+\|\s+([0-9A-Fa-f:.]+)", table, re.M)
    sizes = re.findall(r"(\d+)MiB\s*/\s*(\d+)MiB", table)
    return tuple(
        DriverGpu(slot, name.removeprefix("NVIDIA "), int(total) << 20, int(used) << 20, None)
        for (name, slot), (used, total) in zip(names, sizes, strict=False)
    )


def _gpu(line: str) -> DriverGpu | None:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 6:
        return None
    slot, name, _, total, used, capability = fields
    match = re.fullmatch(r"(\d+)\.(\d+)", capability)
    return DriverGpu(
        slot,
        name.removeprefix("NVIDIA "),
        int(total) << 20 if total.isdigit() else 0,  # "[N/A]" on machines with shared memory
        int(used) << 20 if used.isdigit() else 0,
        (int(match[1]), int(match[2])) if match else None,
    )


def _of_branch(version: str) -> tuple[int, int] | None:
    head = version.partition(".")[0]
    if not head.isdigit():
        return None
    older = [branch for branch in CUDA_OF_BRANCH if branch <= int(head)]
    return CUDA_OF_BRANCH[max(older)] if older else None


def _first(text: str) -> str:
    match = _VERSION.search(text)
    return match[1] if match else ""

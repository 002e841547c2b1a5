"""The GPU, NVIDIA's driver, and what can keep the driver from loading."""

from __future__ import annotations

from collections import Counter

from maestrale.machine.doctor.findings import Asked, Finding, dotted, shown_size
from maestrale.machine.facts import Driver, MachineFacts
from maestrale.machine.requirements import (
    CUDA_VERSION,
    DRIVER_BRANCH,
    FULL_ARCHITECTURE,
    FULL_COMPUTE_CAPABILITY,
    MIN_ARCHITECTURE,
    MIN_COMPUTE_CAPABILITY,
    MIN_DRIVER_VERSION,
    driver_suffices,
)

_LEAST = "{}.{}.{:02}".format(*MIN_DRIVER_VERSION)  # as NVIDIA writes it: 580.65.06
_NEED = f"the image needs CUDA {dotted(CUDA_VERSION)}: driver {_LEAST} or newer"


def has_nvidia(facts: MachineFacts) -> bool:
    """Whether there is an NVIDIA GPU, by PCI or by a driver that lists one (WSL, containers)."""
    return bool(facts.nvidia_gpus or (facts.driver and facts.driver.gpus))


def too_old(facts: MachineFacts) -> bool:
    """Whether each NVIDIA GPU here is too old for the image."""
    found = _capabilities(facts)
    return bool(found) and all(one is not None and one < MIN_COMPUTE_CAPABILITY for one in found)


def gpu(facts: MachineFacts, asked: Asked) -> Finding:
    if not has_nvidia(facts):
        others = [one.title for one in facts.gpus if one.vendor == "amd" or one.vendor == "intel"]
        seen = f" ({_counted(others)} is not used)" if others else ""
        return Finding("gpu", "ok", f"No NVIDIA GPU{seen}: models are served on the CPU.")
    name = _names(facts)
    if too_old(facts):
        family = facts.nvidia_gpus[0].architecture if facts.nvidia_gpus else ""
        of = f", of the {family} generation," if family else ""
        return Finding(
            "gpu",
            "problem",
            f"{name}{of} is too old: CUDA {dotted(CUDA_VERSION)} begins with {MIN_ARCHITECTURE} "
            f"(compute capability {dotted(MIN_COMPUTE_CAPABILITY)}).",
            "Use a newer GPU, or serve on the CPU with the cpu image.",
            "maestrale serve --engine cpu",
        )
    driver = facts.driver
    if driver and driver.answers and facts.nvidia_gpus:
        listed, there = len(driver.gpus), len(facts.nvidia_gpus)
        if 0 < listed < there:
            return Finding(
                "gpu",
                "problem",
                f"{name}: {there} GPUs are on the PCI bus, and the driver lists {listed}. One "
                "failed, or fell off the bus.",
                "Restart the machine; if it stays so, the kernel's log says which and why.",
                "sudo dmesg | grep -iE 'nvrm|xid'",
            )
    capabilities = [one for one in _capabilities(facts) if one is not None]
    if capabilities and min(capabilities) < FULL_COMPUTE_CAPABILITY:
        return Finding(
            "gpu",
            "warning",
            f"{name} works, with limits: before {FULL_ARCHITECTURE} there is no bfloat16, and no "
            "answers that are the same in every batch.",
            f"For those use a GPU of {FULL_ARCHITECTURE} or newer; else nothing is to be done.",
        )
    note = "" if capabilities else ", unknown here, so its age can't be told"
    return Finding("gpu", "ok", f"{name}{note}.")


def driver(facts: MachineFacts, asked: Asked) -> Finding:
    found = facts.driver
    if not has_nvidia(facts):
        if found is not None and found.loaded and not facts.wsl:
            return Finding(
                "driver",
                "warning",
                f"NVIDIA's driver {found.loaded} is loaded, but there is no GPU that it lists.",
                "Look for the reason in the kernel's log.",
                "sudo dmesg | grep -iE 'nvrm|xid'",
            )
        return Finding("driver", "ok", "None is needed without an NVIDIA GPU.")
    if too_old(facts):
        return Finding("driver", "ok", "None that the image could use exists for this GPU.")
    if facts.in_container and (found is None or not found.answers):
        return Finding(
            "driver",
            "problem",
            "None answers in this container: it was not given the GPUs, or its host lacks a part.",
            "Start the container with --gpus all; doctor on the host tells what that lacks.",
        )
    if facts.in_container and found is not None and not driver_suffices(found.version):
        what = f"The host's is NVIDIA {found.version}; {_NEED}."
        return Finding("driver", "problem", what, "Set the host up: maestrale setup USER@HOST")
    if found is None:
        return _no_driver(facts, asked)
    if not found.answers:
        return _broken(facts, found, asked)
    runs = f"CUDA up to {dotted(found.cuda)}" if found.cuda else "an unknown CUDA"
    what = f"NVIDIA {found.version}, for {runs}"
    if not driver_suffices(found.version):
        return Finding("driver", "problem", f"{what}; {_NEED}.", *_newer(facts, asked))
    if facts.nvswitches and facts.services.get("nvidia-fabricmanager", "active") != "active":
        return Finding(
            "driver",
            "problem",
            f"{what}. The GPUs are joined by NVSwitch, but its fabric manager does not run, "
            "without which CUDA does not start.",
            f"Install the one of the driver's version (nvidia-fabricmanager-{found.branch}) and "
            "start it.",
            "sudo systemctl enable --now nvidia-fabricmanager",
        )
    return Finding("driver", "ok", f"{what}; {_NEED}.")


def secure_boot(facts: MachineFacts, asked: Asked) -> Finding:
    found = facts.driver
    works = found is not None and (found.answers or bool(found.loaded))
    if facts.secure_boot is None:
        return Finding("secure-boot", "ok", "Can't be read here; it matters to drivers only.")
    if not facts.secure_boot:
        return Finding("secure-boot", "ok", "Off: drivers load without signatures.")
    if works or not facts.nvidia_gpus or too_old(facts):
        return Finding("secure-boot", "ok", "On; no driver is kept from loading by it.")
    if found is not None:
        return Finding(
            "secure-boot",
            "problem",
            "On: the kernel loads signed modules only, and the driver's is not loaded.",
            "Enrol the key that signed it; confirm it on the console at the next start.",
            "sudo mokutil --import /var/lib/dkms/mok.pub && sudo reboot",
        )
    if facts.os.id == "ubuntu":
        return Finding("secure-boot", "ok", "On; the driver that setup installs is signed.")
    return Finding(
        "secure-boot",
        "warning",
        "On: a driver that is built here is not signed, and would not be loaded.",
        "Switch it off in the machine's firmware or the cloud's settings before setting up, or "
        "use Ubuntu, whose driver is signed.",
    )


def _no_driver(facts: MachineFacts, asked: Asked) -> Finding:
    if facts.wsl:
        return Finding(
            "driver",
            "problem",
            f"None that answers; {_NEED}. Under WSL it is Windows' own.",
            "Install NVIDIA's driver in Windows, then restart WSL from there.",
            "wsl --shutdown",
        )
    holder = next((one.driver for one in facts.nvidia_gpus if one.driver), "")
    held = f" The kernel's own {holder} holds the GPU, and knows no CUDA." if holder else ""
    return Finding(
        "driver",
        "problem",
        f"NVIDIA's is not installed.{held} {_NEED[0].upper()}{_NEED[1:]}.",
        f"Install branch {DRIVER_BRANCH}.",
        asked.setup,
    )


def _broken(facts: MachineFacts, found: Driver, asked: Asked) -> Finding:
    failure = found.failure
    version = found.version or "unknown version"
    if failure == "timeout":
        return Finding(
            "driver",
            "problem",
            f"NVIDIA {version} hangs: nvidia-smi gave no answer within 20 s.",
            "Restart the machine; the kernel's log says what the GPU did.",
            "sudo reboot",
        )
    if "version mismatch" in failure:
        return Finding(
            "driver",
            "problem",
            f"NVIDIA {version} was updated while the older one is loaded.",
            "Restart the machine.",
            "sudo reboot",
        )
    if not found.loaded:
        if facts.secure_boot:
            return Finding(
                "driver",
                "problem",
                f"NVIDIA {version} is installed but not loaded, as secure boot is on.",
                "See secure-boot below.",
            )
        nouveau = any(one.driver == "nouveau" for one in facts.nvidia_gpus)
        why = "the kernel's own nouveau holds the GPU" if nouveau else "its module is not loaded"
        if not nouveau and not facts.headers and not facts.container:
            return Finding(
                "driver",
                "problem",
                f"NVIDIA {version} is installed but {why}: the running kernel's headers are "
                "missing, so it could not be built.",
                "Let setup install them and build it.",
                asked.setup,
            )
        return Finding(
            "driver",
            "problem",
            f"NVIDIA {version} is installed, but {why}.",
            "Restart the machine.",
            "sudo reboot",
        )
    if failure == "missing":
        return Finding(
            "driver",
            "problem",
            f"NVIDIA {version} is loaded, but its programs (nvidia-smi) are missing.",
            f"Install branch {DRIVER_BRANCH} whole.",
            asked.setup,
        )
    return Finding(
        "driver",
        "problem",
        f"NVIDIA {version} is loaded, but does not work: {failure or 'nvidia-smi says nothing'}",
        "Look for the reason in the kernel's log.",
        "sudo dmesg | grep -iE 'nvrm|xid'",
    )


def _newer(facts: MachineFacts, asked: Asked) -> tuple[str, str]:
    if facts.wsl:
        return "Update NVIDIA's driver in Windows, then restart WSL from there.", "wsl --shutdown"
    if not any(name.startswith(("nvidia-", "libnvidia-")) for name in facts.packages):
        return "It came from NVIDIA's installer: remove it with its own, then set up.", (
            "sudo nvidia-uninstall"
        )
    return f"Install branch {DRIVER_BRANCH}.", asked.setup


def _capabilities(facts: MachineFacts) -> list[tuple[int, int] | None]:
    told = [one.capability for one in facts.driver.gpus] if facts.driver else []
    if told and None not in told:
        return list(told)
    return [one.capability for one in facts.nvidia_gpus]


def _names(facts: MachineFacts) -> str:
    listed = facts.driver.gpus if facts.driver else ()
    if listed and len(listed) >= len(facts.nvidia_gpus):
        names = [f"NVIDIA {one.name}" for one in listed]
        memory = min(one.memory for one in listed)
        of = f" ({shown_size(memory)}{' each' if len(listed) > 1 else ''})" if memory else ""
        return _counted(names) + of
    return _counted([one.title for one in facts.nvidia_gpus])


def _counted(names: list[str]) -> str:
    counts = Counter(names)
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())

"""Disk, memory, processor, port, clock, network."""

from __future__ import annotations

from maestrale.machine.doctor.findings import Asked, Finding, shown_size
from maestrale.machine.doctor.gpu import has_nvidia, too_old
from maestrale.machine.facts import Disk, MachineFacts

GIB = 1 << 30
# Free disk: what the image takes while it is built, and beside it a model. The cuda image holds
# torch and CUDA's libraries; Mistral-7B's weights are 14 GiB.
GPU_DISK = (25 * GIB, 45 * GIB)  # (least, enough)
CPU_DISK = (4 * GIB, 10 * GIB)
# Memory: the bundled model alone needs under 1 GiB; vLLM reads weights through it.
GPU_MEMORY = (6 * GIB, 14 * GIB)
CPU_MEMORY = (GIB, 2 * GIB)
BOOT_FREE = 150 << 20  # a new initial RAM disk, with the driver in it
OFFSET = (30, 300)  # seconds: worth a word; certificates and package lists are refused


def disk(facts: MachineFacts, asked: Asked) -> Finding:
    if not facts.disks:
        return Finding(
            "disk",
            "warning",
            "The free space can't be told: df did not answer.",
            "Look for a mount that hangs.",
            "mount",
        )
    least, enough = GPU_DISK if _uses_gpu(facts) else CPU_DISK
    images = _images(facts)
    what = f"{shown_size(images.free)} of {shown_size(images.size)} free for images and models"
    where = f"{what} (on {images.mount})"
    boot = facts.disk_of("/boot")
    if images.free < least:
        return Finding(
            "disk",
            "problem",
            f"{where}; image and a model need {shown_size(least)} at least.",
            "Enlarge the disk; or, if Docker has old images, remove what no container uses.",
            "docker system prune --all",
        )
    if _uses_gpu(facts) and boot and boot.mount == "/boot" and boot.free < BOOT_FREE:
        return Finding(
            "disk",
            "problem",
            f"{where}, but only {shown_size(boot.free)} on /boot: a driver can't be installed.",
            "Remove old kernels.",
            "sudo apt-get autoremove --purge",
        )
    if images.free < enough:
        return Finding(
            "disk",
            "warning",
            f"{where}; {shown_size(enough)} are comfortable for the image and a 7B model.",
            "Enlarge the disk, or keep models elsewhere (HF_HOME).",
        )
    return Finding("disk", "ok", f"{where}.")


def memory(facts: MachineFacts, asked: Asked) -> Finding:
    least, enough = GPU_MEMORY if _uses_gpu(facts) else CPU_MEMORY
    total = facts.memory
    limit = facts.memory_limit
    limited = limit is not None and limit < total
    if limit is not None and limited:
        total = limit
    if not total:
        return Finding("memory", "ok", "Its size can't be told here.")
    of = "allowed to this container" if limited else "in all"
    free = min(facts.memory_available, total)
    what = f"{shown_size(total)} {of}, {shown_size(free)} available"
    fits = "Use a larger machine; this tells what a model needs."
    if total < least * 0.95:  # the kernel keeps some of what the maker says
        return Finding(
            "memory", "problem", f"{what}; {shown_size(least)} are the least.", fits,
            "maestrale plan MODEL",
        )  # fmt: skip
    if total < enough * 0.95:
        return Finding(
            "memory", "warning", f"{what}; {shown_size(enough)} are comfortable.", fits,
            "maestrale plan MODEL",
        )  # fmt: skip
    if facts.memory_available and free < least:
        return Finding(
            "memory",
            "warning",
            f"{what}: other programs hold most of it.",
            "See which, and end what is not needed.",
            "ps -eo rss,comm --sort=-rss | head",
        )
    return Finding("memory", "ok", f"{what}.")


def processor(facts: MachineFacts, asked: Asked) -> Finding:
    cpu = facts.cpu
    count = f"{cpu.count} core{'s' if cpu.count != 1 else ''}"
    name = f"{cpu.model}, {count}" if cpu.model else count
    if facts.arch != "x86_64" or not cpu.flags:
        return Finding("processor", "ok", f"{name}.")
    best = next(
        (
            text
            for flag, text in (
                ("amx_tile", "AMX"),
                ("avx512_vnni", "AVX-512 with VNNI"),
                ("avx_vnni", "AVX2 with VNNI"),
                ("avx512f", "AVX-512"),
                ("avx2", "AVX2"),
            )
            if flag in cpu.flags
        ),
        "",
    )
    if not best and not _uses_gpu(facts):
        return Finding(
            "processor",
            "warning",
            f"{name}, without AVX2: the CPU engine runs, but answers slowly.",
            "Use a machine with a newer processor, or one that shows its host's "
            "(cpu host-passthrough).",
        )
    return Finding("processor", "ok", f"{name}, {best or 'without AVX2'}.{_compiler(facts)}")


def _compiler(facts: MachineFacts) -> str:
    """A hint: a checkout compiles the CPU engine's kernel at its first start."""
    if facts.in_container or _uses_gpu(facts):
        return ""
    if facts.compiler:
        return f" C++ compiler: {facts.compiler}."
    return (
        " No C++ compiler: none is needed, but a checkout then fetches one (100 MB) at its first "
        "start, which apt install g++ spares."
    )


def port(facts: MachineFacts, asked: Asked) -> Finding:
    number = asked.port
    if facts.ports is None:
        return Finding("port", "ok", f"Whether {number} is free can't be told here.")
    if number not in facts.ports:
        return Finding("port", "ok", f"{number} is free.")
    if facts.service:
        return Finding("port", "ok", f"{number}: maestrale answers there ({facts.service}).")
    owner = facts.port_owners.get(number)
    who = f"taken by {owner}" if owner else "taken by another program"
    other = next(one for one in range(number + 1, number + 1000) if one not in facts.ports)
    return Finding(
        "port",
        "problem",
        f"{number} is {who}.",
        f"Stop it, or serve on another port: {other} is free.",
        f"maestrale serve --port {other}" if other < 65536 else "",
    )


def clock(facts: MachineFacts, asked: Asked) -> Finding:
    offset = _offset(facts, asked)
    synchronise = "Let the system set its clock by network time.", "sudo timedatectl set-ntp true"
    by = "the hub's" if facts.hub_offset is not None else "this machine's"
    if offset is not None and abs(offset) >= OFFSET[0]:
        way = "ahead of" if offset > 0 else "behind"
        what = f"The clock is {_duration(abs(offset))} {way} {by}"
        if abs(offset) >= OFFSET[1]:
            what = f"{what}: certificates and package lists may be refused."
            return Finding("time", "problem", what, *synchronise)
        return Finding("time", "warning", f"{what}.", *synchronise)
    if facts.ntp_synchronised:
        return Finding("time", "ok", "The clock is set by network time.")
    if offset is not None:
        return Finding("time", "ok", f"The clock agrees with {by}.")
    if facts.ntp_synchronised is None:
        return Finding("time", "ok", "Nothing to compare the clock with.")
    return Finding("time", "warning", "The clock is not set by network time.", *synchronise)


def network(facts: MachineFacts, asked: Asked) -> Finding:
    if facts.hub == "reached":
        return Finding("network", "ok", "The model hub can be reached.")
    if facts.hub in ("", "no-tool"):
        why = "" if not facts.hub else " (there is neither curl nor wget)"
        return Finding("network", "ok", f"Whether the model hub can be reached was not tried{why}.")
    return Finding(
        "network",
        "warning",
        f"The model hub can't be reached: {facts.hub.rstrip('.')}. The bundled model needs none.",
        "Check the network and DNS; behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT.",
    )


def _uses_gpu(facts: MachineFacts) -> bool:
    return has_nvidia(facts) and not too_old(facts)


def _images(facts: MachineFacts) -> Disk:
    """Where images and models go: the disk of Docker's folder."""
    named = [one for one in facts.disks if one.path not in ("/", "/tmp", "/boot", facts.home)]  # noqa: S108
    return named[0] if named else facts.disks[0]


def _offset(facts: MachineFacts, asked: Asked) -> float | None:
    """Seconds that the machine's clock is ahead, by the hub's, else by this one's."""
    if facts.hub_offset is not None:
        return float(facts.hub_offset)
    if facts.clock is None:
        return None
    if asked.now is not None:
        return facts.clock - asked.now
    return None


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return "0 seconds"

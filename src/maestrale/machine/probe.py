"""Run probe.sh on a machine and read what it wrote."""

from __future__ import annotations

import json
import re
import shlex
from importlib.resources import files
from typing import Any

from maestrale.errors import MachineError, TargetTimeout
from maestrale.machine.facts import Cpu, Disk, Docker, MachineFacts, pci_gpu
from maestrale.machine.probe_driver import read_driver
from maestrale.machine.probe_system import (
    apt_lock,
    hub_answer,
    listening,
    port_owners,
    provider,
    read_os,
    secure_boot,
    sudo_right,
)
from maestrale.machine.sections import Sections, split_sections
from maestrale.machine.target import Target

DEADLINE = 90.0  # seconds for the whole probe


def gather(
    target: Target, *, hub: str = "", service_port: int = 0, timeout: float = DEADLINE
) -> MachineFacts:
    """Look at the machine. `hub`: the address whose reachability is tried from there, if any.

    `service_port`: where a maestrale that runs there already is asked for its health.

    Reads only. Raises: as Target.run, but no TargetTimeout where part of the answer came;
    MachineError for another system than Linux.
    """
    try:
        text = target.run(probe_script(hub, service_port), timeout=timeout).stdout
    except TargetTimeout as error:
        text = error.stdout
        if "@@ kernel" not in text:
            raise
    facts = read_facts(text)
    if facts.system != "Linux":
        raise MachineError(
            f"{target.name} runs {facts.system or 'an unknown system'}; only Linux machines can "
            "be examined. maestrale itself serves there with its CPU engine."
        )
    return facts


def probe_script(hub: str = "", service_port: int = 0) -> str:
    """The whole probe, as `Target.run` takes it."""
    text = files("maestrale.machine").joinpath("probe.sh").read_text("utf-8")
    return f"{text}\nprobe {shlex.quote(hub)} {service_port or ''}"


def read_facts(text: str) -> MachineFacts:
    """The facts in what probe.sh wrote, all of it or its beginning."""
    sections = split_sections(text)
    kernel = [*sections["kernel"].lines, "", "", ""][:3]
    user = [*sections["user"].lines, "", "", ""][:3]
    is_root = user[0] == "0"
    packages, broken = _packages(sections)
    boot = sections["boot"].lines
    docker_json = sections["daemon-json"]
    cloud = sections["cloud-init"].lines
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", sections["memory"].text, re.MULTILINE))
    clock = sections["clock"].text.strip()
    hub, hub_offset = hub_answer(sections)
    virtualisation = sections["virtualisation"].text.strip()
    return MachineFacts(
        os=read_os(sections["os"].text),
        system=kernel[0],
        kernel=kernel[1],
        arch=kernel[2],
        user=user[1],
        is_root=is_root,
        groups=tuple(user[2].split()),
        home=sections["home"].text.strip(),
        sudo=sudo_right(sections, is_root),
        gpus=tuple(
            pci_gpu(fields[0], fields[1], fields[2], "" if fields[4] == "-" else fields[4])
            for line in sections["pci"].lines
            if len(fields := line.split()) == 5 and fields[3].startswith(("0x03", "0x12"))
        ),
        nvswitches=sum(
            1
            for line in sections["pci"].lines
            if line.split()[1:2] == ["0x10de"] and line.split()[3:4] == ["0x068000"]
        ),
        pci_seen=bool(sections["pci"].lines),
        wsl="microsoft" in kernel[1].lower() or "/dev/dxg" in sections["drm"].lines,
        device_nodes=tuple(sections["drm"].lines),
        driver=read_driver(sections, packages),
        modules=tuple(line.split()[0] for line in sections["modules"].lines),
        secure_boot=secure_boot(sections),
        docker=_docker(sections, docker_json.text if docker_json.ok else None),
        toolkit=_version(sections["toolkit"].text) if sections["toolkit"].ok else "",
        cdi=tuple(line for line in sections["cdi"].lines if line.endswith((".yaml", ".json"))),
        disks=tuple(_disks(sections)),
        memory=int(memory.get("MemTotal", 0)) * 1024,
        memory_available=int(memory.get("MemAvailable", 0)) * 1024,
        memory_limit=_limit(sections["memory-limit"].text.strip()),
        cpu=_cpu(sections["cpu"].text.splitlines()),
        ports=listening(sections),
        port_owners=port_owners(sections),
        clock=int(clock) if clock.isdigit() else None,
        ntp_synchronised=_synchronised(sections),
        python=_version(sections["python"].text),
        compiler=(sections["compiler"].lines or [""])[0],
        systemd="systemd" in boot[1:],
        init=boot[0] if boot else "",
        container=virtualisation if virtualisation in _CONTAINERS else _container(boot),
        virtualisation=virtualisation if virtualisation not in _CONTAINERS else "",
        reboot_required="reboot-required" in boot,
        kernel_modules="modules-gone" not in boot,
        headers="headers" in boot,
        provider=provider(sections),
        cloud_init_running="running" in cloud,
        apt_lock=apt_lock(sections),
        dpkg_interrupted=any(line.isdigit() for line in sections["updates"].lines),
        packages=packages,
        broken_packages=broken,
        services=_services(sections),
        service=_service(sections["service"].text),
        token=(sections["token"].lines or [""])[0],
        hub=hub,
        hub_offset=hub_offset,
        unanswered=sections.unanswered,
    )


_CONTAINERS = {"docker", "podman", "lxc", "lxc-libvirt", "systemd-nspawn", "openvz", "rkt", "wsl"}


def _container(boot: list[str]) -> str:
    return "container" if "container" in boot else ""


def _packages(sections: Sections) -> tuple[dict[str, str], tuple[str, ...]]:
    """(installed ones with versions, those left half done)."""
    installed, broken = {}, []
    for line in sections["packages"].lines:
        fields = line.split()
        if len(fields) == 3 and len(fields[0]) in (2, 3):
            state, name, version = fields
            if state == "ii":
                installed[name] = version
            elif state[1] in "HUFWt" or state[2:] == "R":
                broken.append(name)
    for line in sections["rpms"].lines:
        match = re.fullmatch(r"(.+)-([^-]+-[^-]+)", line)
        if match:
            installed[match[1]] = match[2]
    return installed, tuple(broken)


def _docker(sections: Sections, daemon_json: str | None) -> Docker:
    version = sections["docker"].text
    socket = sections["docker-socket"].lines
    host = next((line[5:] for line in socket if line.startswith("host ")), "")
    found = Docker(daemon_json=daemon_json, host=host)
    if "docker" not in sections:
        return found
    podman = "podman" in version.lower()
    said = sections["docker-info"]
    if said.hung:
        return Docker(
            _version(version) or "?", podman, failure="timeout", daemon_json=daemon_json, host=host
        )
    info = _json_line(said.text)
    server = str(info.get("ServerVersion") or "")
    denied = "permission denied" in said.text.lower()
    options = " ".join(str(option) for option in info.get("SecurityOptions") or ())
    return Docker(
        version=_version(version) or "?",
        podman=podman,
        running=bool(server) or denied,
        access=bool(server) if server or denied else None,
        failure="" if server else _docker_failure(said.lines, info),
        server=server,
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        default_runtime=str(info.get("DefaultRuntime") or ""),
        root=str(info.get("DockerRootDir") or ""),
        rootless="rootless" in options,
        host=host,
        daemon_json=daemon_json,
    )


def _docker_failure(lines: list[str], info: dict[str, Any]) -> str:
    told = [line for line in lines if not line.startswith("{")] or info.get("ServerErrors") or [""]
    return str(told[-1])[:300]


def _json_line(text: str) -> dict[str, Any]:
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                return {}
            return value if isinstance(value, dict) else {}
    return {}


def _disks(sections: Sections) -> list[Disk]:
    """`for PATH` before each table of df."""
    disks, path = [], ""
    for line in sections["disks"].lines:
        fields = line.split()
        if line.startswith("for "):
            path = line[4:]
        elif path and len(fields) >= 6 and fields[1].isdigit() and fields[3].isdigit():
            mount = " ".join(fields[5:])
            disks.append(Disk(path, mount, int(fields[1]) * 1024, int(fields[3]) * 1024))
            path = ""
    return disks


def _cpu(lines: list[str]) -> Cpu:
    present, allowed, model, flags = [*lines, "", "", "", ""][:4]
    counts = [int(text) for text in (allowed, present) if text.strip().isdigit() and int(text)]
    return Cpu(
        model.partition(":")[2].strip(),
        counts[0] if counts else 0,
        frozenset(flags.partition(":")[2].split()),
    )


def _limit(text: str) -> int | None:
    """A cgroup's limit; very large ones mean none."""
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def _synchronised(sections: Sections) -> bool | None:
    if sections["ntp"].ok:
        return "NTPSynchronized=yes" in sections["ntp"].lines
    if sections["chrony"].ok:
        return "Not synchronised" not in sections["chrony"].text
    return None


_SERVICES = ("docker", "containerd", "maestrale", "nvidia-fabricmanager")


def _services(sections: Sections) -> dict[str, str]:
    lines = sections["services"].lines
    return dict(zip(_SERVICES, lines, strict=True)) if len(lines) == len(_SERVICES) else {}


def _service(text: str) -> str:
    """The state that a maestrale told of itself, if one answered."""
    answer = _json_line(text)
    state = answer.get("status")
    return str(state) if set(answer) == {"status", "detail"} else ""


def _version(text: str) -> str:
    match = re.search(r"\d+(?:\.\d+)+(?:[-+~.\w]*)", text)
    return match[0] if match else ""

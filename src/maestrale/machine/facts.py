"""What a machine is and has: found by probe.sh, which reads only, and told in these types.

doctor judges them, setup works from them. Sizes are in bytes. None means that it could not be
found out, never that it is absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from maestrale import nvidia

VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}


@dataclass(frozen=True)
class PciGpu:
    """A GPU on the PCI bus, with or without a driver. `driver`: the kernel's, or empty.

    `ids` are vendor and device: ("0x10de", "0x2230"). `name`, `architecture` and `capability`
    (CUDA's) are empty or None where the table has none.
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


@dataclass(frozen=True)
class OsRelease:
    """`id` and `version`: ("ubuntu", "24.04"), ("debian", "12"); `like`: ids it descends from."""

    id: str
    version: str
    codename: str
    name: str
    like: tuple[str, ...] = ()


@dataclass(frozen=True)
class DriverGpu:
    """A GPU as the driver lists it. `capability` is CUDA's, or None for drivers too old to tell."""

    slot: str
    name: str
    memory: int
    used: int
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver.

    `loaded`: the kernel module's version, empty when none is loaded. `installed`: the version on
    disk, empty when none is known. `answers`: nvidia-smi works; if not, `failure` is what it said
    ("timeout": nothing). `cuda`: the newest CUDA that it runs, such as (12, 8).
    """

    loaded: str = ""
    installed: str = ""
    answers: bool = False
    failure: str = ""
    cuda: tuple[int, int] | None = None
    gpus: tuple[DriverGpu, ...] = ()
    open_modules: bool = False

    @property
    def version(self) -> str:
        return self.loaded or self.installed

    @property
    def branch(self) -> int | None:
        """The release branch: 570 of 570.124.06."""
        head = self.version.partition(".")[0]
        return int(head) if head.isdigit() else None


@dataclass(frozen=True)
class Docker:
    """`access`: this user may use the daemon; None where it does not run. `runtimes`: their names.

    `daemon_json` is None where there is no such file or it can't be read. `podman`: the command
    named docker is Podman's.
    """

    version: str = ""
    podman: bool = False
    running: bool | None = None
    access: bool | None = None
    failure: str = ""
    server: str = ""
    runtimes: tuple[str, ...] = ()
    default_runtime: str = ""
    root: str = ""
    rootless: bool = False
    host: str = ""
    daemon_json: str | None = None

    @property
    def installed(self) -> bool:
        return bool(self.version)


@dataclass(frozen=True)
class Disk:
    """The file system that holds `path`; `free` is for users other than root."""

    path: str
    mount: str
    size: int
    free: int


@dataclass(frozen=True)
class Cpu:
    model: str
    count: int
    flags: frozenset[str]


@dataclass(frozen=True)
class MachineFacts:
    """One look at one machine. `unanswered`: the sections cut short, by the probe's names."""

    os: OsRelease
    system: str  # Linux
    kernel: str
    arch: str  # x86_64, aarch64
    user: str
    is_root: bool
    groups: tuple[str, ...]
    home: str
    sudo: str  # root, passwordless, password, none, absent
    gpus: tuple[PciGpu, ...]
    nvswitches: int
    pci_seen: bool
    wsl: bool
    device_nodes: tuple[str, ...]
    driver: Driver | None
    modules: tuple[str, ...]
    secure_boot: bool | None
    docker: Docker
    toolkit: str  # the container toolkit's version; empty: not installed
    cdi: tuple[str, ...]
    disks: tuple[Disk, ...]
    memory: int
    memory_available: int
    memory_limit: int | None
    cpu: Cpu
    ports: tuple[int, ...] | None
    port_owners: dict[int, str]
    clock: int | None  # seconds since 1970, there, when the probe began
    ntp_synchronised: bool | None
    python: str
    compiler: str  # the path of a C++ compiler; empty: none
    systemd: bool
    init: str
    container: str  # docker, lxc ..., empty on a machine of its own
    virtualisation: str
    reboot_required: bool
    kernel_modules: bool
    headers: bool
    provider: str
    cloud_init_running: bool
    apt_lock: str  # what holds it, empty: free
    dpkg_interrupted: bool
    packages: dict[str, str]  # installed: name → version
    broken_packages: tuple[str, ...]
    services: dict[str, str]  # name → active, inactive, failed ...
    service: str  # the state of the maestrale that answers on the service's port; empty: none does
    token: str  # environment, a file's path, or empty
    hub: str  # reached, no-tool, or what went wrong; empty: not asked
    hub_offset: int | None  # seconds that the machine's clock is ahead of the hub's
    unanswered: tuple[str, ...] = field(default=())

    def disk_of(self, path: str) -> Disk | None:
        """The disk that was asked about for `path`."""
        return next((disk for disk in self.disks if disk.path == path), None)

    @property
    def in_container(self) -> bool:
        """Whether this is the inside of a container, such as our image: Docker is on its host."""
        return bool(self.container) and not self.docker.installed

    @property
    def nvidia_gpus(self) -> tuple[PciGpu, ...]:
        return tuple(gpu for gpu in self.gpus if gpu.vendor == "nvidia")

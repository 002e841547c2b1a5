"""What a machine should have, from what it is: a pure function of its facts.

Refuses here, before anything is changed, what set-up can't do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from maestrale.errors import (
    DiskFull,
    GpuTooOld,
    SecureBootOn,
    SettingsError,
    SetupRefused,
    UnsupportedMachine,
)
from maestrale.machine import requirements as needs
from maestrale.machine.facts import MachineFacts
from maestrale.machine.setup import packages as known
from maestrale.machine.setup.packages import PackageChoice, Repository


@dataclass(frozen=True)
class SetupOptions:
    """What the caller asks for. `cpu`: no driver, whatever GPU there is.

    `nvidia_repository` with `nvidia_key`, its public key as text: in place of NVIDIA's own.
    `wait_for_apt`: seconds to wait while another program installs packages.
    """

    cpu: bool = False
    nvidia_repository: str = ""
    nvidia_key: str = ""
    wait_for_apt: float = 300.0


@dataclass(frozen=True)
class SetupPlan:
    """What should be there. Empty tuples: nothing of that kind, or what is there stays.

    `runtime`: Docker's daemon.json has to name NVIDIA's runtime. `notes` are lines for a person.
    """

    distribution: str
    gpus: tuple[str, ...]
    docker: tuple[str, ...]
    key_tools: tuple[str, ...] = ()
    repositories: tuple[Repository, ...] = ()
    contrib: bool = False
    preferences: str = ""
    driver: tuple[str, ...] = ()
    driver_modules: tuple[PackageChoice, ...] = ()
    toolkit: tuple[str, ...] = ()
    runtime: bool = False
    notes: tuple[str, ...] = ()

    @property
    def gpu(self) -> bool:
        return bool(self.gpus)


def make_plan(facts: MachineFacts, options: SetupOptions) -> SetupPlan:
    """Raises: UnsupportedMachine, GpuTooOld, SecureBootOn, DiskFull, SetupRefused."""
    distribution = _distribution(facts, options.cpu)
    _check_disk(facts, options.cpu)
    docker, notes = _docker(facts)
    if facts.container:
        notes += (f"This looks like a container ({facts.container}): Docker may not start in it.",)
    gpus = () if options.cpu else _usable_gpus(facts)
    if not gpus:
        return SetupPlan(distribution, (), docker, notes=notes)
    recipe = known.RECIPES[(facts.os.id, facts.os.version)]
    words = _words(facts)
    user_space = tuple(each.format(**words) for each in recipe.user_space)
    installs, more = _driver_is_due(facts, user_space)
    driver: tuple[str, ...] = ()
    modules: tuple[PackageChoice, ...] = ()
    if installs:
        if facts.secure_boot and not recipe.signed_modules:
            raise SecureBootOn(
                f"Secure boot is on, and {distribution} builds the driver's kernel module on the "
                "machine: the kernel would refuse it, unsigned. Switch secure boot off in the "
                "machine's firmware (in a cloud: an option of the machine), or use Ubuntu, whose "
                "modules are signed. Nothing was changed."
            )
        driver = user_space
        modules = (_filled(recipe.modules, words, facts),)
        if facts.nvswitches:
            modules += (_filled(recipe.fabric_manager, words, facts),)
    repositories = _repositories(facts, options, recipe.cuda_repository if installs else "")
    mirrored = bool(options.nvidia_repository)
    return SetupPlan(
        distribution,
        gpus,
        docker,
        key_tools=("ca-certificates",) if mirrored else known.KEY_TOOLS,
        repositories=repositories,
        contrib=installs and bool(recipe.cuda_repository) and not mirrored,
        preferences=known.PREFERENCES if installs and recipe.cuda_repository else "",
        driver=driver,
        driver_modules=modules,
        toolkit=known.TOOLKIT_PACKAGES,
        runtime=True,
        notes=notes + more,
    )


def read_options(
    cpu: bool, repository: str | None, key: Path | None, wait_for_apt: float
) -> SetupOptions:
    """From the command line. Raises: SettingsError."""
    if bool(repository) != bool(key):
        raise SettingsError("--nvidia-repository and --nvidia-key belong together: give both.")
    if cpu and repository:
        raise SettingsError(
            "--cpu installs nothing of NVIDIA's, so --nvidia-repository means nothing with it: "
            "leave one of them out."
        )
    text = ""
    if repository is not None and key is not None:
        if not re.fullmatch(r"(https?|file)://[^\s]+", repository):
            raise SettingsError(
                f"--nvidia-repository: {repository[:80]!r} is no address. It begins with https://."
            )
        try:
            text = key.expanduser().read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise SettingsError(f"--nvidia-key: {key} can't be read: {why}.") from error
        if "-----BEGIN PGP PUBLIC KEY BLOCK-----" not in text:
            raise SettingsError(
                f"--nvidia-key: {key} is no armoured public key. gpg --armor --export makes one."
            )
        repository = repository.rstrip("/") + "/"
    return SetupOptions(cpu, repository or "", text, wait_for_apt)


def _distribution(facts: MachineFacts, cpu: bool) -> str:
    name = needs.SUPPORTED_DISTRIBUTIONS.get((facts.os.id, facts.os.version))
    known_ones = ", ".join(needs.SUPPORTED_DISTRIBUTIONS.values())
    if name is None:
        found = facts.os.name or f"{facts.os.id} {facts.os.version}".strip() or "unknown"
        raise UnsupportedMachine(
            f"The distribution is {found}; set-up knows {known_ones}. On another one install the "
            f"NVIDIA driver (branch {needs.DRIVER_BRANCH} or newer), Docker and NVIDIA's container "
            "toolkit by hand; 'maestrale doctor' tells what is missing. Nothing was changed."
        )
    if facts.arch not in known.CUDA_ARCHITECTURES:
        raise UnsupportedMachine(
            f"The processor is {facts.arch}; set-up knows x86_64 and aarch64. Nothing was changed."
        )
    if facts.container and facts.nvidia_gpus and not cpu:
        raise UnsupportedMachine(
            f"This is a container ({facts.container}): the driver belongs to the machine below, "
            "and the image runs in place of a set-up. Without a driver: --cpu. Nothing was changed."
        )
    if facts.wsl:
        raise UnsupportedMachine(
            "This is Windows' Linux (WSL): the driver is Windows' own, and Docker Desktop brings "
            "the rest. Nothing was changed."
        )
    return name


def _check_disk(facts: MachineFacts, cpu: bool) -> None:
    disk = facts.disk_of("/")
    no_driver = facts.driver is None or not facts.driver.version
    missing = not facts.docker.installed or (bool(facts.nvidia_gpus) and not cpu and no_driver)
    if disk is not None and missing and disk.free < needs.SETUP_DISK_BYTES:
        raise DiskFull(
            f"The disk has {disk.free / 2**30:.1f} GiB free at {disk.mount}; set-up needs "
            f"{needs.SETUP_DISK_BYTES / 2**30:.0f}, and the image some 20 more with a GPU. Make "
            "room ('apt-get clean', 'docker system prune') or enlarge the disk, then run this "
            "again. Nothing was changed."
        )


def _docker(facts: MachineFacts) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Packages, none where Docker is there already; and notes."""
    docker = facts.docker
    if docker.podman:
        raise SetupRefused(
            "The command 'docker' here is Podman's. Set-up is for Docker: remove the package "
            "podman-docker, then run this again. Nothing was changed."
        )
    packaged = "docker.io" in facts.packages
    if not docker.installed or packaged:
        return known.DOCKER_PACKAGES, ()
    if needs.parse_version(docker.version) < needs.MIN_DOCKER_VERSION:
        raise SetupRefused(
            f"Docker {docker.version} is too old for GPUs in containers (19.03 or newer). Remove "
            "it, then run this again. Nothing was changed."
        )
    return (), (f"Docker {docker.version} is there, and stays.",)


def _usable_gpus(facts: MachineFacts) -> tuple[str, ...]:
    """The names of those that the image can use. Raises: GpuTooOld when there are only others."""
    wanted = needs.MIN_COMPUTE_CAPABILITY
    usable = [
        gpu for gpu in facts.nvidia_gpus if gpu.capability is None or gpu.capability >= wanted
    ]
    if facts.nvidia_gpus and not usable:
        names = ", ".join(dict.fromkeys(gpu.title for gpu in facts.nvidia_gpus))
        raise GpuTooOld(
            f"{names}: too old for CUDA {needs.CUDA_VERSION[0]}, which the image carries, and for "
            f"the driver branch {needs.DRIVER_BRANCH} with open kernel modules. They begin with "
            f"{needs.MIN_ARCHITECTURE} (T4, RTX 20). To set the machine up without its GPU: "
            "--cpu. Nothing was changed."
        )
    return tuple(gpu.title for gpu in usable)


def _driver_is_due(
    facts: MachineFacts, user_space: tuple[str, ...]
) -> tuple[bool, tuple[str, ...]]:
    """Whether a driver is to be installed; and notes."""
    driver = facts.driver
    if driver is None or not driver.version:
        return True, ()
    version = driver.installed or driver.version
    if needs.driver_suffices(version):
        ours = set(user_space) & set(facts.packages)
        works = driver.answers and needs.driver_suffices(driver.loaded)
        # Ours, perhaps half done: the steps look at each package.
        if (ours == set(user_space)) if works else ours:
            return True, ()
        return False, (f"NVIDIA's driver {version} is there, and stays.",)
    packaged = any(name.startswith(("nvidia-", "libnvidia-")) for name in facts.packages)
    if not packaged:
        raise SetupRefused(
            f"NVIDIA's driver {version} is older than the image needs "
            f"({needs.DRIVER_BRANCH}), and came from NVIDIA's .run installer: packages can't "
            "replace it. Remove it with 'sudo nvidia-uninstall', then run this again. Nothing was "
            "changed."
        )
    return True, (f"NVIDIA's driver {version} is replaced: the image needs {needs.DRIVER_BRANCH}.",)


def _words(facts: MachineFacts) -> dict[str, str]:
    return {
        "branch": str(needs.DRIVER_BRANCH),
        "kernel": facts.kernel,
        "flavour": kernel_flavour(facts.os.id, facts.os.version, facts.kernel),
    }


def kernel_flavour(distribution: str, version: str, kernel: str) -> str:
    """What a distribution's packages for this kernel end in; empty for a kernel not its own."""
    if distribution == "debian":  # also 6.12.9+bpo-cloud-amd64
        found = re.fullmatch(r"\d+\.\d+\.\d+[^-]*(-\d+)?-((cloud-|rt-)?(amd64|arm64))", kernel)
        return found[2] if found else ""
    found = re.fullmatch(r"\d+\.\d+\.\d+-\d+-([a-z0-9-]+)", kernel)
    if found is None:
        return ""
    flavour = found[1]
    series = known.UBUNTU_KERNELS.get(version, "")
    if flavour in ("generic", "lowlatency") and not kernel.startswith(series):
        return f"{flavour}-hwe-{version}"
    return flavour


def _filled(choice: PackageChoice, words: dict[str, str], facts: MachineFacts) -> PackageChoice:
    """With names in place. A kernel that is not the distribution's must bring its own headers."""
    if words["flavour"]:
        return PackageChoice(
            tuple(tuple(name.format(**words) for name in names) for names in choice.sets)
        )
    if not facts.headers:
        raise SetupRefused(
            f"The kernel {facts.kernel} is not one of the distribution's, and its headers are not "
            "here: the driver's module can't be built. Install its headers, or boot the "
            "distribution's kernel. Nothing was changed."
        )
    last = choice.sets[-1]
    kept = (name for name in last if "{flavour}" not in name and "{kernel}" not in name)
    return PackageChoice((tuple(name.format(**words) for name in kept),))


def _repositories(
    facts: MachineFacts, options: SetupOptions, folder: str
) -> tuple[Repository, ...]:
    if options.nvidia_repository:
        return (known.mirror(options.nvidia_repository, options.nvidia_key),)
    toolkit = known.toolkit_repository()
    return (known.cuda_repository(folder, facts.arch), toolkit) if folder else (toolkit,)

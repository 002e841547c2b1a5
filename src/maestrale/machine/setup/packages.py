"""Which packages and repositories, for each distribution. Read by plan.py.

Names may hold `{branch}`, `{kernel}` (uname -r) and `{flavour}` (generic, aws, cloud-amd64 ...).
"""

from __future__ import annotations

from dataclasses import dataclass

from maestrale.machine.requirements import DRIVER_BRANCH

# NVIDIA's two keys, told by what nobody can forge. A key fetched is compared with these.
CUDA_FINGERPRINT = "EB693B3035CD5710E231E123A4B469963BF863CC"
TOOLKIT_FINGERPRINT = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
KEY_FOLDER = "/etc/apt/keyrings"
PREFERENCES_FILE = "/etc/apt/preferences.d/maestrale-nvidia"


@dataclass(frozen=True)
class Repository:
    """A flat apt repository. Its key is `key_text`, or fetched from `key_url` and compared."""

    name: str  # of its files, without extension
    uri: str
    suite: str = "/"
    key_url: str = ""
    fingerprint: str = ""
    key_text: str = ""

    @property
    def key_file(self) -> str:
        return f"{KEY_FOLDER}/{self.name}.asc"

    @property
    def source_file(self) -> str:
        return f"/etc/apt/sources.list.d/{self.name}.sources"

    @property
    def source(self) -> str:
        """The .sources file (deb822)."""
        return (
            "# Written by maestrale setup.\n"
            f"Types: deb\nURIs: {self.uri}\nSuites: {self.suite}\nSigned-By: {self.key_file}\n"
        )


@dataclass(frozen=True)
class PackageChoice:
    """Packages that are tried in this order: the first set that apt knows whole is installed."""

    sets: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Recipe:
    """How one distribution gets a driver. `modules`: kernel modules or what they are built from.

    `signed_modules`: they load with secure boot on. `own_repository`: NVIDIA's is needed.
    """

    modules: PackageChoice
    user_space: tuple[str, ...]
    fabric_manager: PackageChoice
    signed_modules: bool
    cuda_repository: str = ""  # the folder below compute/cuda/repos


# From a machine without a release file of NVIDIA's up to a container that sees the GPU, these
# are all. Docker from the distribution: see docs/guide/machine.md.
DOCKER_PACKAGES = ("docker.io", "apparmor")
TOOLKIT_PACKAGES = ("nvidia-container-toolkit",)
KEY_TOOLS = ("ca-certificates", "curl", "gnupg")

# Ubuntu builds and signs the open modules for each of its kernels: no compiler, and secure boot
# may stay on. Where there is none for this kernel, DKMS builds them.
UBUNTU = Recipe(
    modules=PackageChoice(
        (
            ("linux-modules-nvidia-{branch}-server-open-{flavour}",),
            ("linux-modules-nvidia-{branch}-server-open-{kernel}",),
            ("nvidia-dkms-{branch}-server-open", "linux-headers-{kernel}"),
        )
    ),
    user_space=(
        "nvidia-headless-no-dkms-{branch}-server-open",
        "nvidia-utils-{branch}-server",
    ),
    fabric_manager=PackageChoice((("nvidia-fabricmanager-{branch}",),)),
    signed_modules=True,
)

# Debian 12 has branch 535 only, so the driver is NVIDIA's, built here. The headers of a kernel
# that left the mirrors can't be had: then the newest kernel comes with its own.
DEBIAN = Recipe(
    modules=PackageChoice(
        (
            ("nvidia-kernel-open-dkms", "linux-headers-{kernel}", "linux-headers-{flavour}"),
            ("nvidia-kernel-open-dkms", "linux-image-{flavour}", "linux-headers-{flavour}"),
        )
    ),
    user_space=("nvidia-driver-cuda",),
    fabric_manager=PackageChoice((("nvidia-fabricmanager-{branch}",), ("nvidia-fabricmanager",))),
    signed_modules=False,
    cuda_repository="debian12",
)
RECIPES = {("ubuntu", "22.04"): UBUNTU, ("ubuntu", "24.04"): UBUNTU, ("debian", "12"): DEBIAN}
# The kernel that a release of Ubuntu came with; any other generic one is its HWE kernel.
UBUNTU_KERNELS = {"22.04": "5.15.", "24.04": "6.8."}
# uname -m → folder in NVIDIA's CUDA repositories
CUDA_ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "sbsa"}

PREFERENCES = (
    "# Written by maestrale setup: the driver stays on the branch that the image needs.\n"
    "Package: nvidia-* libnvidia-* libcuda* libnvcuvid* libnvoptix* firmware-nvidia-*\n"
    f"Pin: version {DRIVER_BRANCH}.*\n"
    "Pin-Priority: 1001\n"
)


CONTRIB_FILE = "/etc/apt/sources.list.d/maestrale-contrib.sources"
# The driver's packages need two small ones that Debian keeps in contrib.
CONTRIB = (
    "# Written by maestrale setup.\n"
    "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm\nComponents: contrib\n"
    "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
)


def cuda_repository(folder: str, arch: str) -> Repository:
    """NVIDIA's repository with the driver. `arch` is uname's: x86_64 or aarch64."""
    uri = (
        "https://developer.download.nvidia.com/compute/cuda/repos/"
        f"{folder}/{CUDA_ARCHITECTURES[arch]}"
    )
    return Repository(
        "maestrale-nvidia-cuda", f"{uri}/", "/", f"{uri}/3bf863cc.pub", CUDA_FINGERPRINT
    )


def toolkit_repository() -> Repository:
    """NVIDIA's repository with the container toolkit, the same for every distribution."""
    home = "https://nvidia.github.io/libnvidia-container"
    return Repository(
        "maestrale-nvidia-toolkit",
        f"{home}/stable/deb/$(ARCH)/",
        "/",
        f"{home}/gpgkey",
        TOOLKIT_FINGERPRINT,
    )


def mirror(uri: str, key_text: str) -> Repository:
    """One repository in place of NVIDIA's two."""
    return Repository("maestrale-nvidia-mirror", uri, "/", key_text=key_text)

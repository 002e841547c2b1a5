"""What the user asked `create` for, and what of it can't be had, said before anything else."""

from __future__ import annotations

import re
from dataclasses import dataclass

from maestrale.errors import SettingsError
from maestrale.machine.cloud.providers import PROVIDERS, Provider

DEFAULT_DISK = 100  # GB: driver, image and a 7B model take about 60


@dataclass(frozen=True)
class MachineSpec:
    """A machine to make. `gpu` is SkyPilot's name, empty for a machine without one; `disk` in GB;
    `autostop` in minutes without a request, 0: never; `image` a machine image to start from."""

    name: str
    clouds: tuple[Provider, ...]
    gpu: str
    count: int
    region: str = ""
    disk: int = DEFAULT_DISK
    spot: bool = False
    autostop: int = 0
    image: str = ""
    source: str = ""
    model: str = ""
    domain: str = ""

    @property
    def cloud(self) -> Provider | None:
        """The one cloud that was named, if one was."""
        return self.clouds[0] if len(self.clouds) == 1 else None


_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_DOMAIN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]", re.I)


def is_name(text: str) -> bool:
    """Whether a machine can be called that."""
    return _NAME.fullmatch(text) is not None


def check(spec: MachineSpec) -> None:
    """Raises: SettingsError for what no cloud, or not the one named, can do."""
    if not is_name(spec.name):
        raise SettingsError(
            f"{spec.name!r} can't be a machine's name: lower-case letters, digits and hyphens, "
            "beginning with a letter, at most 40."
        )
    if spec.domain and not _DOMAIN.fullmatch(spec.domain):
        raise SettingsError(f"--domain {spec.domain}: that is no domain name, as api.example.com.")
    one = spec.cloud
    if one is None:
        for flag, given in (("--image", spec.image), ("--region", spec.region)):
            if given:
                raise SettingsError(
                    f"{flag} means something only in one cloud: name it by --cloud."
                )
        return
    if spec.spot and not one.spot:
        others = ", ".join(name for name, other in PROVIDERS.items() if other.spot)
        raise SettingsError(
            f"{one.title} has no spot machines (by SkyPilot). Leave --spot out, or take another "
            f"cloud: {others}."
        )
    if spec.image and not one.image:
        what = (
            "the container image is given by --source"
            if one.container
            else "it can't start "
            "from an image (by SkyPilot): set the machine up afresh, without --image"
        )
        raise SettingsError(f"--image with {one.title}: {what}.")
    if spec.image and not re.fullmatch(one.image_form, spec.image):
        raise SettingsError(f"--image {spec.image}: {one.title} takes {one.image}.")
    if spec.image and one.name == "aws" and not spec.region:
        raise SettingsError("An AMI belongs to one region of AWS: name it by --region.")
    if one.disks and spec.disk not in one.disks:
        sizes = ", ".join(map(str, one.disks))
        raise SettingsError(f"--disk {spec.disk}: {one.title} has disks of {sizes} GB.")
    if one.container and spec.domain:
        raise SettingsError(
            f"--domain needs ports 80 and 443 of a machine; {one.title} runs a container. Use the "
            "tunnel (maestrale create --connect NAME), or your cluster's own ingress."
        )


def possible(spec: MachineSpec) -> tuple[Provider, ...]:
    """Of the clouds asked for, those that can do what is wanted.

    Without `--cloud`, machines only: a container needs an image that its cloud can fetch.
    """
    if spec.cloud is not None:
        return spec.clouds
    return tuple(
        one
        for one in spec.clouds
        if not one.container
        and (one.spot or not spec.spot)
        and (not one.disks or spec.disk in one.disks)
    )

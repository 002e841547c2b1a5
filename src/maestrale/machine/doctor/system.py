"""The operating system: is it one that `setup` knows, who are we on it, is it at rest."""

from __future__ import annotations

from maestrale.machine.doctor.findings import Asked, Finding
from maestrale.machine.facts import MachineFacts
from maestrale.machine.requirements import SUPPORTED_DISTRIBUTIONS

_ARCHITECTURES = ("x86_64", "aarch64")


def known_to_setup(facts: MachineFacts) -> bool:
    """Whether `setup` takes this machine; it has more reasons to refuse (see its plan.py)."""
    known = (facts.os.id, facts.os.version) in SUPPORTED_DISTRIBUTIONS
    return known and facts.arch in _ARCHITECTURES and not facts.wsl


def operating_system(facts: MachineFacts, asked: Asked) -> Finding:
    name = facts.os.name or facts.os.id or "an unknown Linux"
    place = f" on {facts.provider}" if facts.provider else ""
    what = f"{name}, Linux {facts.kernel}, {facts.arch}{place}"
    if facts.arch not in _ARCHITECTURES:
        return Finding(
            "system",
            "problem",
            f"{what}. There are images and packages for x86_64 and aarch64 only.",
            "Use a 64-bit machine with an x86 or ARM processor.",
        )
    if facts.in_container:
        kind = f" ({facts.container})" if facts.container != "container" else ""
        return Finding(
            "system",
            "warning",
            f"{what}, inside a container{kind}. Driver, Docker and the service "
            "belong on its host, of which only little can be seen from here.",
            "Run doctor on the host.",
            "maestrale doctor USER@HOST",
        )
    if (facts.os.id, facts.os.version) in SUPPORTED_DISTRIBUTIONS:
        return Finding("system", "ok", f"{what}.")
    known = list(SUPPORTED_DISTRIBUTIONS.values())
    names = f"{', '.join(known[:-1])} and {known[-1]}"
    ready = facts.docker.access and (
        not facts.nvidia_gpus or (facts.driver and facts.driver.answers and facts.toolkit)
    )
    if ready:
        return Finding(
            "system",
            "warning",
            f"{what}. `setup` knows {names} only; what the image needs is here all the same.",
            "Keep driver and Docker up to date with this distribution's own tools.",
        )
    return Finding(
        "system",
        "problem",
        f"{what}. `setup` does not know it: it knows {names}.",
        f"Start the machine from an image of {known[1] if len(known) > 1 else known[0]}, or "
        "install what is missing below by hand (docs/guide/machine.md).",
    )


def rights(facts: MachineFacts, asked: Asked) -> Finding:
    user = facts.user or "this user"
    if facts.sudo in ("root", "passwordless"):
        how = "root" if facts.is_root else f"{user}, who may use sudo without a password"
        return Finding("rights", "ok", f"Logged in as {how}.")
    if facts.sudo == "password":
        what = f"{user} may use sudo with a password only, which `setup` can't type."
        return Finding(
            "rights",
            "warning",
            what,
            "Allow it without one while you set up, or log in as root.",
            f'echo "{user} ALL=(ALL) NOPASSWD:ALL" | sudo tee /etc/sudoers.d/maestrale',
        )
    if facts.in_container:
        return Finding("rights", "ok", f"Logged in as {user}; a container is not set up inside.")
    missing = "there is no sudo" if facts.sudo == "absent" else "may not use sudo"
    return Finding(
        "rights",
        "warning",
        f"{user} is not root, and {missing}. Looking needs no rights; setting up does.",
        "Log in as root, or as a user who may use sudo, to set this machine up.",
    )


def packages(facts: MachineFacts, asked: Asked) -> Finding:
    if facts.cloud_init_running:
        return Finding(
            "packages",
            "warning",
            "The machine is still starting for the first time: cloud-init is at work.",
            "Wait until it is done.",
            "cloud-init status --wait",
        )
    if facts.apt_lock:
        return Finding(
            "packages",
            "warning",
            f"apt is at work ({facts.apt_lock} holds its lock), so nothing can be installed now.",
            "Wait until it ends; updates right after the first start take some minutes.",
        )
    if facts.dpkg_interrupted or facts.broken_packages:
        names = ", ".join(facts.broken_packages[:5])
        which = f": {names}" if names else ""
        return Finding(
            "packages",
            "problem",
            f"An installation was interrupted and left packages half done{which}.",
            "Let dpkg finish it.",
            "sudo dpkg --configure -a",
        )
    return Finding("packages", "ok", "No installation is under way, none was left half done.")


def restart(facts: MachineFacts, asked: Asked) -> Finding:
    if not facts.kernel_modules and not facts.container and facts.nvidia_gpus:
        return Finding(
            "restart",
            "warning",
            f"The modules of the running kernel ({facts.kernel}) are no longer on the disk: a "
            "newer kernel was installed, and drivers can't be loaded until it runs.",
            "Restart the machine.",
            "sudo reboot",
        )
    if facts.reboot_required:
        return Finding(
            "restart",
            "warning",
            "Updates were installed that take effect after a restart.",
            "Restart the machine.",
            "sudo reboot",
        )
    return Finding("restart", "ok", "No restart is due.")

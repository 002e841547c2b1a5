"""Docker, and NVIDIA's container toolkit in it."""

from __future__ import annotations

import json

from maestrale.machine.doctor.findings import Asked, Finding, dotted
from maestrale.machine.doctor.gpu import has_nvidia, too_old
from maestrale.machine.facts import MachineFacts
from maestrale.machine.requirements import MIN_DOCKER_VERSION, parse_version

_CONFIGURE = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"


def docker(facts: MachineFacts, asked: Asked) -> Finding:
    found = facts.docker
    if facts.wsl and not found.installed:
        return Finding(
            "docker",
            "problem",
            "There is no Docker here. Under WSL it is Docker Desktop's, with the toolkit in it.",
            "Install Docker Desktop in Windows, and switch on its WSL integration.",
        )
    if facts.in_container:
        return Finding("docker", "ok", "Not looked for: it belongs on the container's host.")
    if not found.installed:
        return Finding(
            "docker",
            "problem",
            "Docker is not installed, so the image can't run. (`maestrale serve` can, without.)",
            "Install it.",
            asked.setup,
        )
    if found.podman:
        return Finding(
            "docker",
            "problem",
            f"The command docker is Podman's ({found.version}), which the service is not made for.",
            "Remove that name for it, then set the machine up.",
            "sudo apt-get remove podman-docker",
        )
    if found.failure == "timeout":
        return Finding(
            "docker",
            "problem",
            f"Docker {found.version} hangs: its daemon gave no answer within 10 s.",
            "Restart it.",
            "sudo systemctl restart docker",
        )
    if found.running and not found.access:
        user = facts.user or "$USER"
        add = "Add the user to its group (whose members can become root), and log in again."
        if facts.sudo == "passwordless":
            return Finding(
                "docker",
                "warning",
                f"Docker {found.version} runs; {user} may use it with sudo only, as setup leaves "
                "it.",
                f"Type sudo before docker. Or: {add[0].lower()}{add[1:]}",
                f"sudo usermod -aG docker {user}",
            )
        return Finding(
            "docker",
            "problem",
            f"Docker {found.version} runs, but {user} may not use it.",
            add,
            f"sudo usermod -aG docker {user}",
        )
    if not found.running:
        return Finding(
            "docker",
            "problem",
            f"Docker {found.version} is installed, but its daemon does not run.",
            "Start it.",
            "sudo systemctl enable --now docker" if facts.systemd else "sudo service docker start",
        )
    if parse_version(found.server) < MIN_DOCKER_VERSION:
        ours = "docker.io" in facts.packages
        return Finding(
            "docker",
            "problem",
            f"Docker {found.server} is too old: GPUs are given to containers from "
            f"{dotted(MIN_DOCKER_VERSION)} on.",
            "Install a newer one." if ours else "Remove it, then set the machine up.",
            asked.setup if ours else "sudo apt-get remove docker-ce docker-engine docker",
        )
    if found.host and not found.host.startswith("unix://"):
        return Finding(
            "docker",
            "warning",
            f"DOCKER_HOST is {found.host}: Docker's commands go there, not to this machine.",
            "Unset it.",
            "unset DOCKER_HOST",
        )
    if found.root.startswith("/var/snap/") and has_nvidia(facts):
        return Finding(
            "docker",
            "warning",
            f"Docker {found.server} comes from a snap, which NVIDIA's toolkit can't set up.",
            "Remove it, then let setup install the distribution's.",
            "sudo snap remove docker",
        )
    rootless = ", rootless" if found.rootless else ""
    return Finding(
        "docker", "ok", f"Docker {found.server}{rootless} runs, and {facts.user} may use it."
    )


def toolkit(facts: MachineFacts, asked: Asked) -> Finding:
    check = "container-toolkit"
    if not has_nvidia(facts) or too_old(facts):
        return Finding(check, "ok", "None is needed without a GPU that the image can use.")
    if facts.in_container:
        return Finding(check, "ok", "Not looked for: it belongs on the container's host.")
    if not facts.toolkit:
        return Finding(
            check,
            "problem",
            "NVIDIA's container toolkit is not installed, so no container sees the GPU.",
            "Install it.",
            asked.setup,
        )
    what = f"NVIDIA's container toolkit {facts.toolkit} is installed"
    if not facts.docker.installed or facts.docker.podman:
        return Finding(check, "warning", f"{what}, but there is no Docker to use it.",
                       "Install Docker.", asked.setup)  # fmt: skip
    state = _entry(facts.docker.daemon_json)
    if state == "broken":
        return Finding(
            check,
            "problem",
            f"{what}, but /etc/docker/daemon.json is not valid JSON: Docker can't start with it.",
            "Correct that file; this shows where it is wrong.",
            "python3 -m json.tool /etc/docker/daemon.json",
        )
    if "nvidia" in facts.docker.runtimes:
        return Finding(check, "ok", f"{what}, and Docker has its runtime.")
    if state == "there" and facts.docker.runtimes:
        return Finding(
            check,
            "problem",
            f"{what} and in /etc/docker/daemon.json, but the daemon was started before.",
            "Restart Docker.",
            "sudo systemctl restart docker",
        )
    if state == "there":
        return Finding(check, "ok", f"{what}, and its runtime is in /etc/docker/daemon.json.")
    return Finding(
        check,
        "problem",
        f"{what}, but Docker has no entry for its runtime.",
        "Let the toolkit write it.",
        _CONFIGURE,
    )


def _entry(daemon_json: str | None) -> str:
    """Whether Docker's configuration names the runtime: there, absent, broken."""
    if daemon_json is None or not daemon_json.strip():
        return "absent"
    try:
        document = json.loads(daemon_json)
        return "there" if "nvidia" in document.get("runtimes", {}) else "absent"
    except (ValueError, AttributeError, TypeError):
        return "broken"

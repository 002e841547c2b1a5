"""Judge a machine by its facts. Nothing here touches the machine: facts in, findings out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from maestrale.machine.doctor import containers, gpu, resources, system
from maestrale.machine.doctor.findings import Asked, Finding, verdict
from maestrale.machine.facts import MachineFacts

__all__ = ["Asked", "Finding", "examine", "verdict"]

# In the order in which things are put right.
_CHECKS: tuple[Callable[[MachineFacts, Asked], Finding], ...] = (
    system.operating_system,
    system.rights,
    system.packages,
    system.restart,
    gpu.gpu,
    gpu.driver,
    gpu.secure_boot,
    containers.docker,
    containers.toolkit,
    resources.disk,
    resources.memory,
    resources.processor,
    resources.port,
    resources.clock,
    resources.network,
)


def examine(facts: MachineFacts, asked: Asked) -> list[Finding]:
    """One finding for each check, always all of them, in a fixed order."""
    return [_typed(check(facts, asked), facts, asked) for check in _CHECKS]


def _typed(finding: Finding, facts: MachineFacts, asked: Asked) -> Finding:
    """The command as it can be typed on this machine, by this user."""
    command, remedy = finding.command, finding.remedy
    if command == asked.setup and not system.known_to_setup(facts):
        # `setup` would refuse.
        command = ""
        remedy = f"{remedy.rstrip('.')} by hand; docs/guide/machine.md says what, and why."
    if facts.is_root:  # where there may be no sudo
        command = command.replace("sudo ", "")
    return replace(finding, command=command, remedy=remedy)

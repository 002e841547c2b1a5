"""The steps of a set-up, in order: what `make_plan` wants, as operations with names for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyinfra.operations import systemd as units

from maestrale.machine.setup import operations as ops
from maestrale.machine.setup.packages import CONTRIB, CONTRIB_FILE, PREFERENCES_FILE
from maestrale.machine.setup.plan import SetupPlan


@dataclass(frozen=True)
class SetupStep:
    """One operation. `doing`: what a person reads."""

    doing: str
    operation: Callable[..., Any]
    arguments: dict[str, Any]


def steps(plan: SetupPlan, *, systemd: bool) -> list[SetupStep]:
    """All steps, in order. `systemd`: whether it runs on the machine."""
    found: list[SetupStep] = []

    def step(doing: str, operation: Callable[..., Any], **arguments: Any) -> None:
        found.append(SetupStep(doing, operation, arguments))

    step("Packages are whole", ops.repair_packages)
    if plan.key_tools:
        wanted: dict[str, Any] = {"names": plan.key_tools, "choices": (), "repositories": ()}
        step("Package lists of the distribution", ops.package_lists, **wanted)
        step(f"Packages: {', '.join(plan.key_tools)}", ops.packages, names=plan.key_tools)
    if plan.contrib:
        step("Debian's contrib", ops.text_file, path=CONTRIB_FILE, text=CONTRIB)
    for each in plan.repositories:
        if each.key_text:
            text = each.key_text
            step(f"Key of {each.uri}", ops.text_file, path=each.key_file, text=text)
        else:
            step(f"Key of {each.uri}", ops.repository_key, repository=each)
    if plan.preferences:
        text = plan.preferences
        step("Driver branch pinned", ops.text_file, path=PREFERENCES_FILE, text=text)
    every = (*plan.docker, *plan.driver, *plan.toolkit)
    if every:
        wanted = {"names": every, "choices": plan.driver_modules}
        wanted["repositories"] = plan.repositories
        for each in plan.repositories:
            step(f"Repository {each.uri}", ops.repository_source, repository=each)
        step("Package lists", ops.package_lists, **wanted)
    if plan.docker:
        step(f"Docker: {', '.join(plan.docker)}", ops.packages, names=plan.docker)
    if systemd and plan.docker:
        unit: dict[str, Any] = {"service": "docker", "running": True, "enabled": True}
        step("Docker runs, also after a reboot", units.service, **unit)
    if plan.driver:
        names = ", ".join((*plan.driver, *(one.sets[0][0] for one in plan.driver_modules)))
        wanted = {"names": plan.driver, "choices": plan.driver_modules}
        step(f"NVIDIA driver: {names}", ops.packages, **wanted)
    if plan.toolkit:
        step(f"Container toolkit: {', '.join(plan.toolkit)}", ops.packages, names=plan.toolkit)
    if plan.runtime:
        step("NVIDIA's runtime in Docker", ops.docker_runtime, systemd=systemd)
    return found

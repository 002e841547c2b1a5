"""A whole set-up: look, plan, steps, reboot, proof, service. `create` calls this as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maestrale.machine.facts import MachineFacts
from maestrale.machine.probe import gather
from maestrale.machine.setup import reboot
from maestrale.machine.setup.plan import SetupOptions, SetupPlan
from maestrale.machine.setup.proof import prove, provide_image
from maestrale.machine.setup.run import SetupReport, StepOutcome, apply, examine, preview
from maestrale.machine.setup.service import SERVICE, start_service
from maestrale.machine.source import Source
from maestrale.machine.target import Target


@dataclass(frozen=True)
class SetupRequest:
    """What is asked for. `service`: the image runs from then on, and at every boot.

    `resume`: the command that goes on after a reboot of this machine.
    """

    options: SetupOptions = field(default_factory=SetupOptions)
    source: Source | None = None
    dry_run: bool = False
    reboot: bool = False
    proof: bool = True
    service: bool = False
    build_arguments: dict[str, str] = field(default_factory=dict)
    resume: Sequence[str] = ()
    resume_environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SetupResult:
    """What became of it. `proof`: what the container showed; empty when none was run."""

    outcomes: list[StepOutcome]
    gpu: bool
    reboot_needed: bool = False
    proof: str = ""

    @property
    def changed(self) -> bool:
        return any(each.changed for each in self.outcomes)


def set_up(target: Target, request: SetupRequest, report: SetupReport) -> SetupResult:
    """Raises: SetupError and its kinds; SourceError; as Target.run. Can be run again after each."""
    facts, plan = examine(target, request.options)
    report.note(headline(target, facts, plan))
    for line in plan.notes:
        report.note(f"  {line}")
    if request.dry_run:
        outcomes = preview(target, facts, plan)
        if plan.gpu and (reason := reboot.reboot_to_come(facts)):
            report.note(f"  A reboot will be needed: {reason}. --reboot does it.")
        _tell_preview(outcomes, report)
        return SetupResult(outcomes, plan.gpu)
    outcomes = apply(target, facts, plan, request.options, report)
    changes = sum(each.changed for each in outcomes)
    if changes:
        report.note(f"{changes} of {len(outcomes)} steps changed something.")
    else:
        report.note("Nothing was missing; nothing was changed.")
    if plan.gpu and not _driver_is_up(target, request, report):
        return SetupResult(outcomes, True, reboot_needed=True)
    source = request.source
    if request.service:
        source = Source("image", _image(target, request, plan, report))
    proof = ""
    if request.proof:
        proof = prove(
            target,
            source,
            gpu=plan.gpu,
            report=report,
            build_arguments=request.build_arguments,
        )
        report.note(f"Proof: {proof}")
    if request.service and source is not None:
        started = start_service(target, source.value, gpu=plan.gpu)
        report.note(
            f"The service {SERVICE} {'is started' if started else 'runs already'}: "
            f"'journalctl -u {SERVICE}' there."
        )
    return SetupResult(outcomes, plan.gpu, proof=proof)


def _image(target: Target, request: SetupRequest, plan: SetupPlan, report: SetupReport) -> str:
    return provide_image(
        target,
        request.source or Source.parse(None),
        "cuda" if plan.gpu else "cpu",
        report=report,
        build_arguments=request.build_arguments,
    )


def headline(target: Target, facts: MachineFacts, plan: SetupPlan) -> str:
    """`root@host: Ubuntu 22.04, NVIDIA RTX A5000`"""
    gpus = ", ".join(plan.gpus) or "no GPU to set up: Docker alone"
    return f"{target.name}: {plan.distribution} on {facts.arch}, {gpus}"


def _tell_preview(outcomes: list[StepOutcome], report: SetupReport) -> None:
    changes = sum(each.changed for each in outcomes)
    if changes:
        report.note(f"{changes} of {len(outcomes)} steps would change something:")
    else:
        report.note("Nothing is missing; nothing would be changed:")


def _driver_is_up(target: Target, request: SetupRequest, report: SetupReport) -> bool:
    """Load the driver, by a reboot where that is asked for. False: a reboot is needed first.

    Raises: SetupError when it doesn't work even after one; TargetUnreachable.
    """
    facts = reboot.load_driver(target, gather(target))
    reason = reboot.reboot_reason(facts)
    if not reason:
        return True
    if not request.reboot:
        report.note(
            f"A reboot is needed: {reason}. Reboot it and run this again, or let --reboot do both."
        )
        return False
    if target.local:
        report.note(f"Rebooting: {reason}. It goes on by itself; 'journalctl -u {reboot.UNIT}'.")
        # Relative paths in the command mean the same after the reboot.
        unit = reboot.resume_unit(request.resume, request.resume_environment, str(Path.cwd()))
        reboot.reboot_here(target, unit)
        return False
    report.note(f"Rebooting {target.name}: {reason} ...")
    seconds = reboot.reboot_and_wait(target)
    report.note(f"It is back after {seconds:.0f} s.")
    facts = reboot.load_driver(target, gather(target))
    if reboot.reboot_reason(facts):
        raise reboot.still_not(target, facts)
    return True

"""Set a machine up: look, refuse what can't be, then each step only where something is missing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.operation import OperationMeta, add_op
from pyinfra.api.operations import run_host_op
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_host, ctx_state

from maestrale.errors import PackagesLocked, SetupError
from maestrale.machine.facts import MachineFacts
from maestrale.machine.probe import gather
from maestrale.machine.setup.connector import TargetConnector, connect
from maestrale.machine.setup.deploy import SetupStep, steps
from maestrale.machine.setup.failures import explain
from maestrale.machine.setup.plan import SetupOptions, SetupPlan, make_plan
from maestrale.machine.target import Target


@dataclass(frozen=True)
class StepOutcome:
    """What became of a step. `changed`: it did, or would do, something: `commands`."""

    doing: str
    changed: bool
    seconds: float = 0.0
    commands: tuple[str, ...] = ()


class SetupReport(Protocol):
    """Who is told how it goes."""

    def note(self, line: str) -> None: ...

    def begin(self, doing: str) -> None: ...

    def end(self, outcome: StepOutcome) -> None: ...


def examine(target: Target, options: SetupOptions) -> tuple[MachineFacts, SetupPlan]:
    """Look at the machine and decide; changes nothing. Raises: as make_plan, Target.run; NoSudo."""
    facts = gather(target)
    plan = make_plan(facts, options)
    if not facts.is_root:
        # Says which of the reasons it is.
        target.run("true", as_root=True)
    return facts, plan


def preview(target: Target, facts: MachineFacts, plan: SetupPlan) -> list[StepOutcome]:
    """What a set-up would change. Raises: SetupError when a fact can't be read."""
    with _prepared(target, facts, plan) as run:
        return [
            StepOutcome(step.doing, run.changes(meta), 0.0, run.commands(meta))
            for step, meta in run.operations
        ]


def apply(
    target: Target, facts: MachineFacts, plan: SetupPlan, options: SetupOptions, report: SetupReport
) -> list[StepOutcome]:
    """Do what is missing. Raises: SetupError and its kinds, after which it can be run again."""
    outcomes = []
    with _prepared(target, facts, plan) as run:
        if any(run.changes(meta) for _, meta in run.operations):
            wait_for_apt(target, facts, options.wait_for_apt, report)
        for step, meta in run.operations:
            report.begin(step.doing)
            began = time.monotonic()
            changed = run.execute(step, meta)
            outcomes.append(StepOutcome(step.doing, changed, time.monotonic() - began))
            report.end(outcomes[-1])
    return outcomes


def wait_for_apt(target: Target, facts: MachineFacts, limit: float, report: SetupReport) -> None:
    """Let another program finish installing packages. Raises: PackagesLocked after `limit` s."""
    ends = time.monotonic() + limit
    holder, told = facts.apt_lock, False
    while holder:
        if time.monotonic() >= ends:
            raise PackagesLocked(
                f"On {target.name} {holder} is installing packages, for {limit:.0f} s now. New "
                "machines update themselves for some minutes after their start. Run this again "
                "later, or with --wait-for-apt SECONDS. Nothing was changed."
            )
        if not told:
            report.note(f"waiting for {holder}, which is installing packages ...")
            told = True
        time.sleep(min(5.0, max(0.2, limit / 20)))
        holder = gather(target).apt_lock


class _PreparedSteps:
    """A pyinfra state with all steps prepared: each operation has looked at its facts."""

    def __init__(self, target: Target, facts: MachineFacts, plan: SetupPlan) -> None:
        self.target = target
        self.state, self.host, connector = connect(target, sudo=not facts.is_root)
        self.connector: TargetConnector = connector
        self.operations: list[tuple[SetupStep, OperationMeta]] = []
        self.state.set_stage(StateStage.Prepare)
        for step in steps(plan, systemd=facts.systemd):
            try:
                done = add_op(self.state, step.operation, name=step.doing, **step.arguments)
            except PyinfraError as error:  # a fact that can't be read
                raise self._explained(step) from error
            self.operations.append((step, done[self.host]))

    def changes(self, meta: OperationMeta) -> bool:
        return meta.will_change

    def commands(self, meta: OperationMeta) -> tuple[str, ...]:
        """What it would run, as things stand now."""
        data = self.state.get_op_data_for_host(self.host, meta._hash)
        return tuple(str(command) for command in data.command_generator())

    def execute(self, step: SetupStep, meta: OperationMeta) -> bool:
        """Whether anything was done. Raises: SetupError."""
        self.state.is_executing = True
        try:
            done = run_host_op(self.state, self.host, meta._hash)
        except PyinfraError as error:
            raise SetupError(f"{step.doing}, on {self.target.name}: {error}") from error
        if not done:
            raise self._explained(step)
        return meta.did_change()

    def _explained(self, step: SetupStep) -> SetupError:
        last = self.connector.last
        return explain(step.doing, self.target.name, f"{last.stdout}\n{last.stderr}")


@contextmanager
def _prepared(target: Target, facts: MachineFacts, plan: SetupPlan) -> Iterator[_PreparedSteps]:
    state = None
    try:
        run = _PreparedSteps(target, facts, plan)
        state = run.state
        with ctx_state.use(run.state), ctx_host.use(run.host):
            yield run
    finally:
        # pyinfra's own managers leave theirs set when an error passes through.
        ctx_state.reset()
        ctx_host.reset()
        if state is not None:
            state.set_stage(StateStage.Disconnect)

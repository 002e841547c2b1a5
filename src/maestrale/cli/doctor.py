"""`maestrale doctor`: what a machine has and lacks to serve models, each with its remedy."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maestrale.cli.echo import echo
from maestrale.cli.parameters import FiniteRange
from maestrale.config.hub import hub_settings
from maestrale.config.reading import load_settings
from maestrale.errors import MachineError

if TYPE_CHECKING:
    from maestrale.machine.doctor import Finding
    from maestrale.machine.facts import MachineFacts

SCHEMA = 1  # of --json; findings may be added within it, nothing changes its meaning


@click.command("doctor")
@click.argument("target", required=False)
@click.option("--model", "-m", help="Whether this account may have it; as for 'serve'.")
@click.option(
    "--service-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="The port to serve on. Default: as for 'serve', 8000.",
)
@click.option("--port", "-p", type=click.IntRange(1, 65535), help="Of the SSH server.")
@click.option(
    "--identity",
    "-i",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Private key for SSH; else as ssh itself finds one.",
)
@click.option(
    "--accept-new-host-key",
    is_flag=True,
    help="Take the key of a host that was never seen before as it is.",
)
@click.option(
    "--ssh-option", "ssh_options", multiple=True, metavar="KEY=VALUE", help="As ssh's own -o."
)
@click.option(
    "--timeout",
    type=FiniteRange(5, 600),
    default=90.0,
    show_default=True,
    help="Seconds for looking at the machine, in all.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs: findings and facts.")
def command(
    target: str | None,
    model: str | None,
    service_port: int | None,
    port: int | None,
    identity: Path | None,
    accept_new_host_key: bool,
    ssh_options: tuple[str, ...],
    timeout: float,
    as_json: bool,
) -> int:
    """Tell what this machine, or TARGET over SSH (user@host), has and lacks to serve models.

    Looks only: nothing is changed, no rights are needed. Each finding that is not ok comes with
    its remedy. Exit code 0: no problem. 1: a problem, or the machine could not be looked at.
    """
    from maestrale.cli.doctor_hub import hub_findings
    from maestrale.cli.doctor_server import server_findings
    from maestrale.machine.doctor import Asked, examine, verdict
    from maestrale.machine.probe import gather
    from maestrale.machine.target import Target

    environment = _environment()
    settings = load_settings({"model": model, "port": service_port}, environment)
    hub = hub_settings(environment)
    machine = Target.parse(
        target,
        port=port,
        identity=identity,
        accept_new=accept_new_host_key,
        options=ssh_options,
    )
    try:
        with machine:
            began = time.time()
            facts = gather(
                machine,
                hub="" if hub.offline else hub.endpoint,
                service_port=settings.port,
                timeout=timeout,
            )
    except MachineError as error:
        if as_json:
            echo(json.dumps(_not_seen(target, error), indent=2))
        raise
    asked = Asked(
        "" if machine.local else machine.name, settings.port, None if machine.local else began
    )
    findings = [
        *examine(facts, asked),
        *hub_findings(facts, hub, settings, machine.local),
        *server_findings(settings, machine.local),
    ]
    if as_json:
        echo(json.dumps(_document(target, facts, findings), indent=2))
    else:
        from maestrale.cli.doctor_table import show

        show(machine.name, facts, findings, asked.setup)
    return 1 if verdict(findings) == "problem" else 0


def _environment() -> dict[str, str]:
    """With a home folder for users who have none: settings name files in it; none is made."""
    try:
        Path.home()
    except RuntimeError:
        return {**os.environ, "HOME": "/nonexistent"}
    return dict(os.environ)


def _not_seen(target: str | None, error: MachineError) -> dict[str, Any]:
    """--json of a machine that could not be looked at: one finding, and no facts."""
    finding = {"check": "connection", "state": "problem", "what": str(error)}
    return {
        "schema": SCHEMA,
        "target": target,
        "verdict": "problem",
        "findings": [{**finding, "remedy": None, "command": None}],
        "facts": {},
    }


def _document(target: str | None, facts: MachineFacts, findings: list[Finding]) -> dict[str, Any]:
    from dataclasses import asdict

    from maestrale.machine.doctor import verdict

    known = asdict(facts)
    known["cpu"]["flags"] = sorted(facts.cpu.flags)
    return {
        "schema": SCHEMA,
        "target": target,
        "verdict": verdict(findings),
        "findings": [
            {
                "check": one.check,
                "state": one.state,
                "what": one.what,
                "remedy": one.remedy or None,
                "command": one.command or None,
            }
            for one in findings
        ],
        "facts": known,
    }

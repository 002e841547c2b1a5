"""`maestrale setup`: driver, Docker and container toolkit on a machine, or what lacks of them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maestrale.cli.echo import echo
from maestrale.cli.parameters import FiniteRange, given_names
from maestrale.errors import SettingsError
from maestrale.printable import printable

if TYPE_CHECKING:
    from maestrale.machine.setup.run import StepOutcome
    from maestrale.machine.target import Target

REBOOT_NEEDED = 3  # exit code


@click.command("setup")
@click.argument("target", required=False)
@click.option("--dry-run", is_flag=True, help="Only list what would change.")
@click.option("--reboot", is_flag=True, help="Reboot where the driver needs it, then go on.")
@click.option("--cpu", is_flag=True, help="No driver, whatever GPU there is: Docker alone.")
@click.option(
    "--source",
    metavar="WHAT",
    help="What the image is made of: a checkout's folder, a wheel, a git URL, an image with its "
    "tag, or ==VERSION. Default: what this maestrale came from.",
)
@click.option("--no-proof", is_flag=True, help="Don't run a container at the end.")
@click.option("--service", is_flag=True, help="At the end, run the image as a service.")
@click.option("--cloud-init", is_flag=True, help="Print user-data that does it at first boot.")
@click.option("-i", "--identity", type=click.Path(path_type=Path), help="SSH: the private key.")
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="SSH: the port.")
@click.option(
    "--accept-new-host-key", is_flag=True, help="SSH: take the key of a host not seen before."
)
@click.option(
    "--nvidia-repository",
    metavar="URL",
    help="A mirror of NVIDIA's packages, in place of NVIDIA's.",
)
@click.option(
    "--nvidia-key",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The mirror's public key, armoured.",
)
@click.option(
    "--wait-for-apt",
    type=FiniteRange(0, 86400),
    default=300.0,
    metavar="SECONDS",
    help="Wait so long while another program installs packages. Default: 300.",
)
@click.option("-v", "--verbose", is_flag=True, help="With --dry-run: the commands as well.")
@click.pass_context
def command(context: click.Context, /, target: str | None, **given: Any) -> int:
    """Set up a machine: NVIDIA's driver, Docker, the container toolkit; what is there stays.

    TARGET is user@host[:port], over SSH; without it, this machine. Ubuntu 22.04, 24.04 and
    Debian 12. A machine without a GPU gets Docker alone. Can be run again at any time: it changes
    nothing where nothing is missing. It ends with proof: a container that sees the GPU, or the
    cpu image answering. With --service the image runs from then on, on the machine's loopback.

    Ends with code 3 when a reboot is needed first.
    """
    from maestrale.machine.setup.plan import read_options

    options = read_options(
        given["cpu"], given["nvidia_repository"], given["nvidia_key"], given["wait_for_apt"]
    )
    if given["cloud_init"]:
        _only_for_text(context)
        from maestrale.machine.setup.cloud_init import user_data

        click.echo(user_data(options, given["source"]), nl=False)
        return 0
    if given["verbose"] and not given["dry_run"]:
        raise SettingsError("--verbose goes with --dry-run.")
    if given["no_proof"] and given["source"] is not None and not given["service"]:
        raise SettingsError(
            "--source says what the image of the proof is made of, and --no-proof makes none: "
            "leave one of them out, or have the image run as a --service."
        )
    try:
        import pyinfra  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "Set-up needs pyinfra, the extra 'machine'. In a checkout './maestrale setup' gets it "
            "by itself, and so does scripts/extra machine; elsewhere: "
            "pip install 'maestrale[machine]'."
        ) from error
    from maestrale.machine.target import Target

    with Target.parse(
        target,
        port=given["port"],
        identity=given["identity"],
        accept_new=given["accept_new_host_key"],
    ) as machine:
        return _set_up(machine, given, options)


# What --cloud-init goes with.
_IN_USER_DATA = {"cloud_init", "source", "cpu", "nvidia_repository", "nvidia_key"}


def _only_for_text(context: click.Context) -> None:
    """Raises: SettingsError when --cloud-init comes with what user-data can't do."""
    names_of_others = given_names(context) - _IN_USER_DATA
    others = [one for one in context.command.params if one.name in names_of_others]
    if others:
        names = ", ".join(
            max(one.opts, key=len) if isinstance(one, click.Option) else "TARGET" for one in others
        )
        raise SettingsError(
            "--cloud-init prints text for a machine to come, which needs no one logged in: it "
            f"takes no {names}."
        )


def _set_up(machine: Target, given: dict[str, Any], options: Any) -> int:
    from maestrale.machine.setup import flow
    from maestrale.machine.source import Source

    source = Source.parse(given["source"]) if given["source"] is not None else None
    show = Terminal()
    request = flow.SetupRequest(
        options,
        source=source,
        dry_run=given["dry_run"],
        reboot=given["reboot"],
        proof=not given["no_proof"],
        service=given["service"],
        build_arguments=_build_arguments() if machine.local else {},
        resume=_own_command(),
        resume_environment=_own_environment(),
    )
    result = flow.set_up(machine, request, show)
    if given["dry_run"]:
        show.preview(result.outcomes, verbose=given["verbose"])
    return REBOOT_NEEDED if result.reboot_needed else 0


class Terminal:
    """Tells a person how it goes, one line a step; on a terminal also what is being done."""

    def __init__(self) -> None:
        self._moving = sys.stdout.isatty()
        self._doing = ""

    def note(self, line: str) -> None:
        self._clear()
        echo(line)
        self._show()

    def begin(self, doing: str) -> None:
        self._doing = doing
        self._show()

    def end(self, outcome: StepOutcome) -> None:
        self._clear()
        self._doing = ""
        took = f" ({outcome.seconds:.0f} s)" if outcome.seconds >= 1 else ""
        if outcome.changed:
            click.echo(
                f"  {click.style('changed  ', fg='green')}  {printable(outcome.doing)}{took}"
            )
        else:
            click.echo(f"  {click.style('as it was', dim=True)}  {printable(outcome.doing)}")

    def preview(self, outcomes: list[StepOutcome], *, verbose: bool) -> None:
        from maestrale.machine.setup import scripts

        for each in outcomes:
            mark = click.style("would change", fg="yellow") if each.changed else "as it is    "
            click.echo(f"  {mark}  {printable(each.doing)}")
            for line in each.commands if verbose else ():
                echo(f"        $ {line.replace(scripts.APT, 'apt-get')}")

    def _show(self) -> None:
        if self._moving and self._doing:
            echo(f"  ...        {self._doing[:64]} (since {time.strftime('%H:%M')})", nl=False)

    def _clear(self) -> None:
        if self._moving:
            click.echo("\r\033[K", nl=False)


def _own_command() -> list[str]:
    """How this very command is run again after a reboot of this machine; no second reboot."""
    arguments = [word for word in sys.argv[1:] if word != "--reboot"]
    return [sys.executable, "-m", "maestrale", *arguments]


def _own_environment() -> dict[str, str]:
    names = [
        *("PYTHONPATH", "PYTHONSAFEPATH", "HOME", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"),
        *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_CERT"),
    ]
    return {name: os.environ[name] for name in names if name in os.environ}


def _build_arguments() -> dict[str, str]:
    """How this machine reaches a package index, for images built on it."""
    names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
    return {name: os.environ[name] for name in names if os.environ.get(name)}

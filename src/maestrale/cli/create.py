"""`maestrale create`: a cloud machine that serves, and what comes after it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from maestrale.cli.echo import echo
from maestrale.cli.parameters import given_names
from maestrale.config.paths import default_data_dir, default_machines_dir
from maestrale.errors import SettingsError

if TYPE_CHECKING:
    from maestrale.machine.cloud.flow import CloudTools
    from maestrale.machine.cloud.machine_spec import MachineSpec

DEFAULT_NAME = "maestrale"
SSH_SECONDS = 300.0  # from the cloud's "it runs" to the first login
# The gist's, on its GPU. Without a GPU the bundled model serves.
GPU_MODEL = "mistralai/Mistral-7B-Instruct-v0.2"


def _say(text: str) -> None:
    echo(text, err=True)


@click.command("create")
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="What to call the machine.")
@click.option("--cloud", help="paperspace, do, lambda, aws, gcp, azure, runpod or kubernetes.")
@click.option("--gpu", default="A5000", show_default=True, help="As A5000, A100:2; or none.")
@click.option("--region", default="", help="Where, in the cloud's words. Default: the cheapest.")
@click.option("--disk", type=click.IntRange(30, 10000), default=100, show_default=True, help="GB.")
@click.option("--spot", is_flag=True, help="Cheaper, but the cloud may take it away at any time.")
@click.option(
    "--autostop",
    type=click.IntRange(5, 100000),
    metavar="MINUTES",
    help="Stop it (delete it, where a cloud can't stop) after so long without a request.",
)
@click.option("--image", default="", help="Start from a snapshot of a machine that is set up.")
@click.option("--source", help="What it installs: checkout, wheel, git URL, image, ==VERSION.")
@click.option("--model", help=f"Model to serve. Default with a GPU: {GPU_MODEL}.")
@click.option("--domain", default="", help="Serve this domain by HTTPS, with its own certificate.")
@click.option("--dry-run", is_flag=True, help="Print the task file for SkyPilot and the offers.")
@click.option("--yes", is_flag=True, help="Don't ask before money is spent.")
@click.option("--list", "listing", is_flag=True, help="The machines made here, and their state.")
@click.option("--connect", metavar="NAME", help="Open the tunnel to a machine, and keep it.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="The tunnel's end here.")
@click.option("--stop", metavar="NAME", help="Stop a machine; its disk stays.")
@click.option("--start", metavar="NAME", help="Start it again.")
@click.option("--down", metavar="NAME", help="Delete a machine with all that costs.")
@click.pass_context
def command(
    context: click.Context,
    name: str,
    cloud: str | None,
    gpu: str,
    region: str,
    disk: int,
    spot: bool,
    autostop: int | None,
    image: str,
    source: str | None,
    model: str | None,
    domain: str,
    dry_run: bool,
    yes: bool,
    listing: bool,
    connect: str | None,
    port: int,
    stop: str | None,
    start: str | None,
    down: str | None,
) -> int:
    """Make a cloud machine that serves a model, with SkyPilot.

    Shows what the clouds offer and what it costs, and asks; then brings the machine up, sets it
    up, starts the service with a key, and verifies it through an SSH tunnel. Run again, it goes
    on where it stopped. Docs: docs/guide/create.md.
    """
    from maestrale.cli import create_run
    from maestrale.machine.cloud.after import find
    from maestrale.machine.cloud.machine_spec import MachineSpec, check
    from maestrale.machine.cloud.providers import PROVIDERS, find_provider, gpu_name, region_name
    from maestrale.machine.cloud.records import Book

    acts = [one for one in (connect, stop, start, down) if one is not None]
    if len(acts) + listing > 1 or (dry_run and (acts or listing)):
        raise SettingsError("One at a time: --list, --connect, --stop, --start, --down, --dry-run.")
    given = _given(context)
    book = Book(default_machines_dir(os.environ))
    if listing:
        if not any(book.all()):
            echo("No machine was made here.")
            return 0
        return create_run.show_list(_tools(None, ""))
    if acts:
        find(book, acts[0])
        tools = _tools(None, acts[0])
        if down is not None:
            return create_run.delete(down, tools, yes)
        if stop is not None:
            return create_run.stop(stop, tools)
        if start is not None:
            return create_run.start(start, tools, port)
        return create_run.connect(acts[0], tools, port)
    provider = find_provider(cloud) if cloud else None
    accelerator, count = ("", 0) if gpu.lower() == "none" else gpu_name(gpu)
    spec = MachineSpec(
        name=name,
        clouds=(provider,) if provider else tuple(PROVIDERS.values()),
        gpu=accelerator,
        count=count,
        region=region_name(provider, region) if provider else region,
        disk=disk,
        spot=spot,
        autostop=autostop or 0,
        image=image,
        source=source or "",
        model=model or (GPU_MODEL if accelerator else ""),
        domain=domain,
    )
    check(spec)
    if provider is not None and provider.name == "kubernetes" and "disk" in given:
        raise SettingsError("--disk with Kubernetes: a pod has its node's disk. Leave it out.")
    create_run.check_source(spec)
    if not (dry_run or yes) and not sys.stdin.isatty():
        raise SettingsError(
            "Nothing was made: this spends money, and there is no terminal to ask at. Say --yes, "
            "or look first with --dry-run."
        )
    tools = _tools(spec, name, ask=not yes)
    if dry_run:
        return create_run.dry_run(spec, tools)
    return create_run.create(spec, tools, port)


# What else may be said with each of these; the rest would mean nothing.
_WITH = {"listing": (), "connect": ("port",), "stop": (), "start": ("port",), "down": ("yes",)}


def _given(context: click.Context) -> set[str]:
    """The names of what was given. Raises: SettingsError for empty texts and what doesn't fit."""
    given = given_names(context)
    flags = {one.name: one.opts[0] for one in context.command.params}
    for name in sorted(given):
        value = context.params[name]
        if isinstance(value, str) and not value.strip():
            raise SettingsError(f"{flags[name]}: a text is needed, but {value!r} was given.")
    for act in given & set(_WITH):
        if others := sorted(flags[name] for name in given - {act, *_WITH[act]}):
            raise SettingsError(
                f"{flags[act]} is for a machine that was made: it takes no {', '.join(others)}."
            )
    return given


def _tools(spec: MachineSpec | None, name: str, *, ask: bool = False) -> CloudTools:
    from maestrale.cli.create_run import CloudSteps
    from maestrale.machine.cloud import environment, paperspace
    from maestrale.machine.cloud.flow import CloudTools
    from maestrale.machine.cloud.machine_spec import possible
    from maestrale.machine.cloud.pilot import Pilot
    from maestrale.machine.cloud.providers import PROVIDERS
    from maestrale.machine.cloud.records import Book

    book = Book(default_machines_dir(os.environ))
    log = book.log_path(name) if name else book.folder / "skypilot.log"
    if spec is not None:
        # A cloud whose client is large is looked at without it, but for one that was named.
        extras = {one.extra for one in possible(spec)} if spec.cloud else set()
    else:
        record = book.find(name) if name else None
        extras = {PROVIDERS[record.cloud].extra} if record else set()
    given = os.environ.get("MAESTRALE_CLOUD_PYTHON")
    data = default_data_dir(os.environ)
    python = Path(given) if given else environment.ensure(data, extras, _say)
    home = Path(os.environ.get("HOME") or Path.home())
    url = os.environ.get("MAESTRALE_PAPERSPACE_URL", paperspace.URL)
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    steps = CloudSteps(_say, token)
    return CloudTools(
        pilot=Pilot(python, book.folder / "skypilot", log, os.environ),
        book=book,
        steps=steps,
        say=_say,
        confirm=_confirm if ask else lambda question: True,
        paperspace=lambda: paperspace.Paperspace(paperspace.read_key(home), url),
        image=spec.source if spec is not None else "",
        secrets=(("HF_TOKEN", token),) if token else (),
        ssh_seconds=SSH_SECONDS,
    )


def _confirm(question: str) -> bool:
    return click.confirm(question, err=True)

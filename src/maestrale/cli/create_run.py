"""What `maestrale create` does and prints, once its flags are read."""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Callable
from pathlib import Path

import click

from maestrale.cli.echo import echo
from maestrale.config import settings as config
from maestrale.config.hub import hub_settings
from maestrale.config.reading import load_settings
from maestrale.errors import MachineError, ModelError, NoSuchOffer, SettingsError
from maestrale.machine.cloud import after, flow, offers, task
from maestrale.machine.cloud.flow import CloudTools
from maestrale.machine.cloud.machine_spec import MachineSpec
from maestrale.machine.cloud.providers import CATALOGUE_ROWS, PROVIDERS
from maestrale.machine.cloud.records import MachineRecord
from maestrale.machine.cloud.steps import serve_domain, wait_healthy
from maestrale.machine.setup.service import start_service
from maestrale.machine.target import Target

QUESTION = "Keep your answers to 20 words or less. What is the plot of movie Lion king ? "


class CloudSteps:
    """The steps on the machine; `token` is the Hugging Face token for the model."""

    def __init__(self, say: Callable[[str], None], token: str) -> None:
        self._say = say
        self._token = token
        self._image = ""
        self._gpu = False

    def set_up(self, target: Target, spec: MachineSpec) -> None:
        from maestrale.cli.setup import Terminal
        from maestrale.machine.setup import flow as setup_flow
        from maestrale.machine.setup import proof
        from maestrale.machine.source import Source

        show = Terminal()
        self._say(f"Setting up {target.name} ...")
        done = setup_flow.set_up(target, setup_flow.SetupRequest(reboot=True, proof=False), show)
        if done.reboot_needed:
            raise MachineError(f"{target.name} was rebooted, and its driver still wants a reboot.")
        self._gpu = done.gpu
        if spec.gpu and not done.gpu:
            raise MachineError(
                f"{target.name} has no GPU that works, and {spec.gpu} was asked for: look with "
                f"maestrale doctor {target.name}"
            )
        source = Source.parse(spec.source or None)
        self._image = proof.provide_image(
            target, source, "cuda" if done.gpu else "cpu", report=show
        )

    def start(self, target: Target, spec: MachineSpec, key: str) -> None:
        secrets = {task.KEY: key, **({"HF_TOKEN": self._token} if self._token else {})}
        self._say("Starting the service ...")
        if not start_service(
            target,
            self._image,
            gpu=self._gpu,
            port=task.PORT,
            model=spec.model,
            secrets=secrets,
        ):
            self._say("  it runs already, as asked for")
        if spec.domain:
            serve_domain(target, spec.domain, self._say)

    def prove(self, target: Target, record: MachineRecord) -> None:
        container = PROVIDERS[record.cloud].container
        with target.forward(0, task.PORT) as port:
            url = f"http://127.0.0.1:{port}"
            self._say("Waiting until it is healthy ...")
            wait_healthy(target, url, self._say, container=container)
            self._say("Verifying it through the tunnel ...")
            verify(url, record.key)


def verify(url: str, key: str) -> None:
    """Run the collection, with its table. Raises: MachineError when a check fails."""
    from maestrale.cli.verify import command

    code = command.main([url, "--api-key", key], prog_name="verify", standalone_mode=False)
    if code:
        raise MachineError(
            "The service answers, but verify doesn't pass: see above which check failed, and why."
        )


def check_source(spec: MachineSpec) -> None:
    """Say early what is wrong with `--source`. Raises: SourceError, SettingsError."""
    from maestrale.machine.source import Source

    container = spec.cloud is not None and spec.cloud.container
    if container:
        source = Source.parse(spec.source) if spec.source else None
        if source is None or source.kind != "image":
            title = spec.clouds[0].title
            raise SettingsError(
                f"{title} runs images: name one that it can fetch, with its tag, by --source. "
                "How such an image is made: docs/guide/create.md."
            )
    else:
        Source.parse(spec.source or None)


def dry_run(spec: MachineSpec, tools: CloudTools) -> int:
    """Print the task file that SkyPilot would get, after its own parser took it."""
    with tools.pilot:
        check_model(spec, tools.say, refuse=False)
        market = _market(spec, tools)
        flow.show(market, tools.say)
        offer = market.offers[0]
        text = task.task_yaml(spec, offer, image=tools.image)
        tools.say(f"\nThe cheapest: {offer.line()}.")
        for note in [*task.notes(spec, offer), *flow.costs(spec, offer)]:
            tools.say(note)
        path = tools.book.task_path(f".{spec.name}.dry-run")
        tools.book.write_text(path, text)
        try:
            given = [(task.KEY, "made when it is launched")]
            tools.pilot.call("check", yaml=str(path), secrets=given, rows=CATALOGUE_ROWS)
        finally:
            path.unlink(missing_ok=True)
        tools.say("SkyPilot's parser takes this task file; nothing was made:\n")
        click.echo(text, nl=False)
    return 0


def _market(spec: MachineSpec, tools: CloudTools) -> offers.Market:
    """The offers; of Kubernetes, without a cluster, one that a cluster could make."""
    try:
        return offers.ask(tools.pilot, spec)
    except NoSuchOffer as error:
        if spec.cloud is None or spec.cloud.name != "kubernetes":
            raise
        tools.say(f"{error}\nThe task file is for a cluster that has.")
        any_node = offers.Offer(
            "kubernetes", spec.region, "", spec.gpu, spec.count, None, None, False, 0.0
        )
        return offers.Market((any_node,), {})


def check_model(spec: MachineSpec, say: Callable[[str], None], *, refuse: bool) -> None:
    """Say before money is spent that the hub won't give the model to this account.

    Raises: ModelError, with `refuse`; SettingsError for a path.
    """
    from maestrale.cli.doctor_hub import model_finding

    if spec.model and Path(spec.model).expanduser().exists():
        raise SettingsError(
            f"--model {spec.model} is a file or folder here, and the machine would not have it: "
            "name a model on the hub."
        )
    settings = load_settings(
        {"model": spec.model or config.BUNDLED_MODEL}, {"HOME": "/nonexistent"}, Path(os.devnull)
    )
    hub = hub_settings(os.environ)
    found = model_finding(settings, hub, "vllm" if spec.gpu else "cpu")
    if found.state == "problem" and refuse:
        raise ModelError(f"{found.what} {found.remedy}\nNothing was made.")
    if found.state == "warning":
        say(f"Whether this account may have the model is not known: {found.what}")
    elif found.state == "problem":
        say(f"The model: {found.what} {found.remedy}".strip())


def create(spec: MachineSpec, tools: CloudTools, port: int) -> int:
    """Make it, prove it, print how to use it."""
    check_model(spec, tools.say, refuse=True)
    with tools.pilot:
        record = flow.create(spec, tools)
    if record is None:
        tools.say("Nothing was made.")
        return 1
    echo(summary(record, tools, port))
    return 0


def summary(record: MachineRecord, tools: CloudTools, port: int) -> str:
    """What a person needs from now on."""
    port = port or task.PORT
    login = record.login
    assert login is not None
    where = f"{PROVIDERS[record.cloud].title} {record.instance}".strip()
    price = f", ${record.price:.2f} an hour" if record.price else ""
    lines = [f"\n{record.name} serves {record.model or 'the bundled model'} on {where}{price}."]
    if record.domain:
        lines += [
            f"\nPoint {record.domain} to {login.host} (an A record); then, by HTTPS:",
            curl(f"https://{record.domain}", record.key, record.model),
            "\nOr through the tunnel, which needs no domain:",
        ]
    else:
        lines.append("\nIt answers through an SSH tunnel only. Open it, and leave it open:")
    lines += [
        f"  maestrale create --connect {record.name} --port {port}",
        f"  or: {after.ssh_line(record, tools.book, port)}",
        "Then:",
        curl(f"http://127.0.0.1:{port}", record.key, record.model),
        f"\nKey:      {record.key}",
        f"Address:  {address(record)}",
    ]
    if record.autostop:
        verb = "deleted" if record.deletes else "stopped"
        lines.append(f"Autostop: {verb} after {record.autostop} minutes without a request")
    if PROVIDERS[record.cloud].stops:
        lines.append(f"Stop:     maestrale create --stop {record.name}   (its disk still costs)")
    lines.append(f"Delete:   maestrale create --down {record.name}")
    return "\n".join(lines)


def address(record: MachineRecord) -> str:
    """The machine's address, and whether it stays."""
    login = record.login
    host = login.host if login is not None else "none yet"
    if PROVIDERS[record.cloud].container:
        return f"{host} (a container's: it has none that stays)"
    if record.static:
        return f"{host} (static: it stays when the machine is stopped)"
    return f"{host} (a new one after each stop)"


def curl(url: str, key: str, model: str) -> str:
    """A request ready to paste. It asks /v1/models' first model when none was named."""
    from maestrale.config.settings import BUNDLED_MODEL

    name = model or BUNDLED_MODEL
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'
    return (
        f"  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\\n"
        f"    -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def connect(name: str, tools: CloudTools, port: int) -> int:
    """Hold the tunnel until Ctrl-C or until it breaks."""
    with tools.pilot, after.connected(name, tools, port) as (record, there):
        url = f"http://127.0.0.1:{there}"
        try:
            echo(f"{name} answers at {url} (web page and API) until you press Ctrl-C.")
            echo(f"Key: {record.key}")
            echo(curl(url, record.key, record.model))
            while True:
                time.sleep(2.0)
                with socket.create_connection(("127.0.0.1", there), 5.0):
                    pass
        except KeyboardInterrupt:
            echo("\nThe tunnel is closed; the machine goes on, and costs.", err=True)
            return 0
        except OSError as error:
            raise MachineError(
                f"The tunnel to {name} broke: the machine is stopped, or the network is gone. "
                f"Look: maestrale create --list; open it again: maestrale create --connect {name}"
            ) from error


def show_list(tools: CloudTools) -> int:
    """One line for each machine made here."""
    with tools.pilot:
        found = after.states(tools)
    if not found:
        echo("No machine was made here.")
    for record, state in found:
        where = f"{PROVIDERS[record.cloud].title} {record.instance}".strip()
        price = f"${record.price:.2f} an hour" if record.price else "no price of its own"
        host = record.login.host if record.login else "-"
        echo(f"{record.name}  {state}  {where}  {record.region or '-'}  {host}  {price}")
    return 0


def delete(name: str, tools: CloudTools, yes: bool) -> int:
    """Delete it with all that costs."""
    record = after.find(tools.book, name)
    question = f"Delete {name} on {PROVIDERS[record.cloud].title} with its disk?"
    if not yes and not click.confirm(question, err=True):
        tools.say("Nothing was deleted.")
        return 1
    with tools.pilot:
        echo(after.down(name, tools))
    return 0


def stop(name: str, tools: CloudTools) -> int:
    """Stop it."""
    with tools.pilot:
        echo(after.stop(name, tools))
    return 0


def start(name: str, tools: CloudTools, port: int) -> int:
    """Start it again, prove it, and print how to use it."""
    with tools.pilot:
        record = after.start(name, tools)
    echo(summary(record, tools, port))
    return 0

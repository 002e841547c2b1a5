"""One `maestrale create`, end to end: offers, machine, set-up, service, proof.

    ask (offers, price) ─► launch ─► reach (SSH) ─► set_up ─► start ─► healthy ─► verify

Each step may be done again: a run that was interrupted is gone on with by the same command. From
`launch` on the machine costs money, so every failure says whether it is there and how to delete it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from maestrale.errors import (
    HalfMade,
    LoginRefused,
    MaestraleError,
    NoCredentials,
    SettingsError,
    TargetTimeout,
    TargetUnreachable,
)
from maestrale.machine.cloud import offers, task
from maestrale.machine.cloud.machine_spec import MachineSpec, check
from maestrale.machine.cloud.offers import Market, Offer
from maestrale.machine.cloud.paperspace import Paperspace
from maestrale.machine.cloud.pilot import Pilot
from maestrale.machine.cloud.providers import CATALOGUE_ROWS, PROVIDERS
from maestrale.machine.cloud.records import SERVING, UP, Book, Login, MachineRecord
from maestrale.machine.target import Target

Say = Callable[[str], None]


class Steps(Protocol):
    """What is done on the machine itself, once it can be reached (`steps.py`)."""

    def set_up(self, target: Target, spec: MachineSpec) -> None:
        """Driver, Docker, toolkit, image: what of it is missing."""

    def start(self, target: Target, spec: MachineSpec, key: str) -> None:
        """The service with its key, on the machine's loopback; with a domain also HTTPS."""

    def prove(self, target: Target, record: MachineRecord) -> None:
        """Wait until it is healthy, then verify it through a tunnel."""


@dataclass(frozen=True)
class CloudTools:
    """What a run works with. `paperspace` gives a client of its API, when one is needed."""

    pilot: Pilot
    book: Book
    steps: Steps
    say: Say
    confirm: Callable[[str], bool]
    paperspace: Callable[[], Paperspace]
    image: str = ""  # the container image, for clouds that run containers
    secrets: tuple[tuple[str, str], ...] = ()  # more of them for the task, such as HF_TOKEN
    ssh_seconds: float = 300.0  # from the cloud's "it runs" to the first login


def create(spec: MachineSpec, tools: CloudTools) -> MachineRecord | None:
    """Make the machine, or go on with it. None when the user says no.

    Raises: SettingsError, CloudError and its kinds; HalfMade when the machine is left behind.
    """
    check(spec)
    record = tools.book.find(spec.name)
    if record is None:
        record = _begin(spec, tools)
        if record is None:
            return None
    else:
        check_same(spec, record)
        tools.say(f"{record.name} was begun before, on {PROVIDERS[record.cloud].title}: going on.")
    with leaving_behind(record, tools):
        record = replace(_launch(spec, record, tools), model=spec.model)
        with machine(record, tools.book) as target:
            reach(target, tools.ssh_seconds, tools.say)
            if not PROVIDERS[record.cloud].container:
                tools.steps.set_up(target, spec)
                tools.steps.start(target, spec, record.key)
            tools.steps.prove(target, record)
        return tools.book.write(replace(record, phase=SERVING))


def choose(market: Market, spec: MachineSpec, tools: CloudTools) -> Offer:
    """The cheapest offer of a cloud that takes our credentials. Raises: NoCredentials."""
    clouds = list(dict.fromkeys(offer.cloud for offer in market.offers))
    answers = tools.pilot.call("credentials", clouds=clouds)
    for offer in market.offers:
        if answers[offer.cloud] is None:
            return offer
    lines = [
        f"{PROVIDERS[cloud].title}: {PROVIDERS[cloud].key}\n"
        f"  (SkyPilot says: {(answers[cloud] or '')[:300]})"
        for cloud in clouds
    ]
    raise NoCredentials(
        "There are offers, but no credentials that their clouds take. Nothing was made. "
        "To give some:\n" + "\n".join(lines)
    )


def _begin(spec: MachineSpec, tools: CloudTools) -> MachineRecord | None:
    market = offers.ask(tools.pilot, spec)
    show(market, tools.say)
    offer = choose(market, spec, tools)
    text = task.task_yaml(spec, offer, image=tools.image)
    tools.say(f"\nTaken: {offer.line()}.")
    for note in [*task.notes(spec, offer), *costs(spec, offer)]:
        tools.say(note)
    if not tools.confirm(f"Bring up {spec.name} for {offer.cost()}?"):
        return None
    tools.book.write_text(tools.book.task_path(spec.name), text)
    return tools.book.write(
        MachineRecord(
            name=spec.name,
            cloud=offer.cloud,
            region=offer.region,
            instance=offer.instance,
            gpu=offer.gpu,
            price=offer.price,
            key=f"sk-{secrets.token_urlsafe(32)}",
            model=spec.model,
            domain=spec.domain,
            autostop=spec.autostop,
            deletes=task.deletes(spec, offer),
            count=spec.count,
            disk=spec.disk,
            spot=spec.spot,
            image=spec.image,
        )
    )


def show(market: Market, say: Say) -> None:
    """The cheapest offers, and why a cloud has none."""
    for offer in market.offers[: offers.SHOWN]:
        say(f"  {offer.line()}")
    more = len(market.offers) - offers.SHOWN
    if more > 0:
        say(f"  ... and {more} more, dearer")
    for line in market.problems.values():
        say(f"  {line}")


def costs(spec: MachineSpec, offer: Offer) -> list[str]:
    """What goes on costing, and what stops it."""
    cloud = PROVIDERS[offer.cloud]
    on_top = "its disk and static address come" if cloud.static else "its disk comes"
    lines = [] if cloud.container else [f"The price is the machine's; {on_top} on top."]
    listed = {str(row["InstanceType"]) for row in CATALOGUE_ROWS.get(offer.cloud, [])}
    if offer.instance in listed:
        lines.append(
            f"SkyPilot's catalogue lacks {cloud.title}'s {offer.instance}: the price is from "
            "maestrale's own table. Compare it with the console's."
        )
    if spec.autostop:
        verb = "deleted" if task.deletes(spec, offer) else "stopped"
        lines.append(f"Autostop: {verb} after {spec.autostop} minutes without a request.")
    else:
        lines.append("No autostop: it costs until you stop or delete it (--autostop MINUTES).")
    if not cloud.stops:
        lines.append(f"{cloud.title} can't stop it, only delete it.")
    if not cloud.container and not cloud.static:
        lines.append(
            f"{cloud.title} gives a new address after each stop: it is read anew, and the tunnel "
            "(create --connect) finds it."
        )
    return lines


def check_same(spec: MachineSpec, record: MachineRecord) -> None:
    """Raises: SettingsError when the name is taken by a machine of another kind."""
    clouds = {one.name for one in spec.clouds}
    same_gpu = record.gpu.lower() == spec.gpu.lower() and record.count == spec.count
    ways = f"Choose another --name, or delete it: maestrale create --down {record.name}"
    title = PROVIDERS[record.cloud].title
    if record.cloud not in clouds or not same_gpu:
        gpu = f"{record.count} x {record.gpu}" if record.gpu else "no GPU"
        raise SettingsError(f"There is a machine {record.name} already: {gpu} on {title}. {ways}")
    fixed = [
        ("--region", record.region.lower(), (spec.region or record.region).lower()),
        ("--disk", record.disk, spec.disk),
        ("--spot", record.spot, spec.spot),
        ("--autostop", record.autostop, spec.autostop),
        ("--image", record.image, spec.image),
        ("--domain", record.domain, spec.domain),
    ]
    if PROVIDERS[record.cloud].container:
        fixed.append(("--model", record.model, spec.model))
    for flag, was, now in fixed:
        if was != now:
            raise SettingsError(
                f"The machine {record.name} was made with {flag} {was or 'left out'}, which can't "
                f"be changed afterwards: say the same again to go on. {ways}"
            )


def _launch(spec: MachineSpec, record: MachineRecord, tools: CloudTools) -> MachineRecord:
    template, address = "", "static"
    if record.cloud == "paperspace" and record.login is None:
        client = tools.paperspace()
        try:
            template = spec.image or client.template(record.instance)
        finally:
            client.close()
    log = tools.book.log_path(record.name)
    tools.say(f"Bringing up {record.name}, which takes some minutes. Its log: {log}")
    made = tools.pilot.call(
        "launch",
        name=record.name,
        cloud=record.cloud,
        yaml=str(tools.book.task_path(record.name)),
        secrets=[(task.KEY, record.key), *tools.secrets],
        rows=CATALOGUE_ROWS,
        address=address,
        template=template,
    )
    login = Login(made["host"], made["port"], made["user"], made["identity"], made["proxy"])
    static = record.static
    if record.cloud == "paperspace":
        static = _static(login.host, tools)
    return tools.book.write(replace(record, phase=UP, login=login, static=static))


def _static(address: str, tools: CloudTools) -> str:
    client = tools.paperspace()
    try:
        if client.is_static(address):
            return address
    finally:
        client.close()
    tools.say(f"Paperspace gave {address} as a dynamic address: it changes after a stop.")
    return ""


@contextmanager
def machine(record: MachineRecord, book: Book) -> Iterator[Target]:
    """The machine over SSH. Its key is taken at the first login and held to from then on."""
    login = record.login
    if login is None:
        raise HalfMade(
            f"{record.name} was never seen running. Go on: maestrale create --name {record.name}; "
            f"or delete it: maestrale create --down {record.name}"
        )
    book.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = [f"UserKnownHostsFile={book.known_hosts(record.name)}"]
    if login.proxy:
        options.append(f"ProxyCommand={login.proxy}")
    identity = Path(login.identity) if login.identity else None
    with Target(login.host, login.user, login.port, identity, True, tuple(options)) as target:
        yield target


def reach(target: Target, limit: float, say: Say) -> None:
    """Wait for the first login, at most `limit` seconds. Raises: TargetUnreachable and its like."""
    ends = time.monotonic() + limit
    while True:
        try:
            target.run("true", timeout=30.0)
            return
        except (TargetUnreachable, TargetTimeout, LoginRefused):
            # A new machine runs before its SSH server does, and before it has our key.
            if time.monotonic() >= ends:
                say(f"No login by SSH within {limit:.0f} s.")
                raise
        time.sleep(min(3.0, max(0.1, limit / 20)))


@contextmanager
def leaving_behind(record: MachineRecord, tools: CloudTools) -> Iterator[None]:
    """Turns a failure into one that says what is left and costs."""
    try:
        yield
    except KeyboardInterrupt:
        tools.say(f"\nInterrupted. {whats_left(record, tools)}")
        raise
    except MaestraleError as error:
        raise HalfMade(f"{error}\n\n{whats_left(record, tools)}") from error


def whats_left(record: MachineRecord, tools: CloudTools) -> str:
    """One sentence on what is in the cloud now; forgets a machine that never was."""
    now = tools.book.find(record.name) or record
    there = (
        f"costs {'as your cluster does' if not record.price else f'${record.price:.2f} an hour'}. "
        f"Run the same command again to go on, or delete it: maestrale create --down {record.name}"
    )
    if now.login is not None:
        return f"The machine {record.name} is up and {there}"
    try:
        tools.pilot.close()
        state = tools.pilot.call("status", names=[record.name])[record.name]
    except MaestraleError:
        state = {"state": "unknown"}
    if state is None:
        tools.book.remove(record.name)
        return "Nothing was left in the cloud: nothing costs money."
    return f"The machine {record.name} may be there (state: {state['state']}); if so it {there}"

"""What comes after `create`: where things stand, the tunnel, stop, start, delete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from maestrale.errors import CloudError, MachineError, MaestraleError, SettingsError
from maestrale.machine.cloud import task
from maestrale.machine.cloud.flow import CloudTools, machine
from maestrale.machine.cloud.machine_spec import is_name
from maestrale.machine.cloud.providers import PROVIDERS
from maestrale.machine.cloud.records import STOPPED, UP, Book, Login, MachineRecord


def find(book: Book, name: str) -> MachineRecord:
    """The record. Raises: SettingsError, naming those there are."""
    record = book.find(name) if is_name(name) else None
    if record is None:
        names = ", ".join(one.name for one in book.all())
        raise SettingsError(
            f"There is no machine {name!r} here. {f'There are: {names}.' if names else 'None is.'}"
        )
    return record


def down(name: str, tools: CloudTools) -> str:
    """Delete the machine, its disk and its static address. What it says is what is gone.

    Raises: CloudError and its kinds; then the record stays, and this can be run again.
    """
    record = find(tools.book, name)
    try:
        was_there = tools.pilot.call("down", name=name)
    except MaestraleError as error:
        raise CloudError(
            f"{name} could not be deleted: it may still cost money. {error}\nRun this again, or "
            f"delete it in the console of {PROVIDERS[record.cloud].title}."
        ) from error
    gone = [f"{name} is deleted" if was_there else f"{name} was not there any more"]
    if record.static:
        client = tools.paperspace()
        try:
            if client.release(record.static):
                gone.append(f"its address {record.static} is given back")
        except MaestraleError as error:
            tools.book.write(replace(record, login=None))
            raise CloudError(
                f"{name} is deleted, but its static address {record.static} is not given back and "
                f"costs money: {error}\nRun this again."
            ) from error
        finally:
            client.close()
    tools.book.remove(name)
    return "; ".join(gone) + ". Nothing of it costs money now."


def stop(name: str, tools: CloudTools) -> str:
    """Stop it; the disk stays and costs. Raises: SettingsError where that can't be, CloudError."""
    record = find(tools.book, name)
    cloud = PROVIDERS[record.cloud]
    if not cloud.stops:
        raise SettingsError(
            f"{cloud.title} can't stop a machine, only delete it: maestrale create --down {name}"
        )
    tools.pilot.call("stop", name=name)
    tools.book.write(replace(record, phase=STOPPED))
    kept = "disk and address" if record.static else "disk"
    return f"{name} is stopped. Its {kept} still cost. Start it: maestrale create --start {name}"


def start(name: str, tools: CloudTools) -> MachineRecord:
    """Start it again; the service comes by itself. Raises: CloudError."""
    record = find(tools.book, name)
    made = tools.pilot.call("start", name=name)
    login = Login(made["host"], made["port"], made["user"], made["identity"], made["proxy"])
    if record.login is not None and login.host != record.login.host:
        tools.say(f"Its address is now {login.host} (was {record.login.host}).")
        # Another machine's key may be known for that address.
        tools.book.known_hosts(name).unlink(missing_ok=True)
    record = tools.book.write(replace(record, login=login, phase=UP))
    with machine(record, tools.book) as target:
        tools.steps.prove(target, record)
    return record


def states(tools: CloudTools) -> list[tuple[MachineRecord, str]]:
    """Every machine made here, with what its cloud says of it now."""
    records = list(tools.book.all())
    try:
        found = tools.pilot.call("status", names=[one.name for one in records]) if records else {}
    except MachineError as error:
        tools.say(f"The clouds can't be asked now: {str(error).splitlines()[0]}")
        return [(one, f"{one.phase} when last seen") for one in records]
    said = []
    for one in records:
        state = found.get(one.name)
        said.append((one, str(state["state"]).lower() if state else "gone from the cloud"))
    return said


@contextmanager
def connected(name: str, tools: CloudTools, port: int) -> Iterator[tuple[MachineRecord, int]]:
    """The tunnel to the service, for as long as the block runs. Raises: as Target.forward."""
    record = find(tools.book, name)
    with machine(record, tools.book) as target, target.forward(port, task.PORT) as there:
        yield record, there


def ssh_line(record: MachineRecord, book: Book, port: int) -> str:
    """The command that opens the same tunnel by hand."""
    login = record.login
    if login is None:
        raise MachineError(f"{record.name} has no address yet.")
    words = ["ssh", "-N", "-L", f"{port}:127.0.0.1:{task.PORT}"]
    words += ["-o", f"UserKnownHostsFile={book.known_hosts(record.name)}"]
    if login.identity:
        words += ["-i", login.identity]
    if login.port != 22:
        words += ["-p", str(login.port)]
    if login.proxy:
        words += ["-o", f"ProxyCommand={login.proxy!r}"]
    return " ".join([*words, f"{login.user}@{login.host}"])


__all__ = ["connected", "down", "find", "ssh_line", "start", "states", "stop"]

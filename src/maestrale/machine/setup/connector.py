"""pyinfra over our Target: local or by the OpenSSH client, with our errors for what fails there.

pyinfra's own SSH connector is paramiko, which knows neither ~/.ssh/config in full nor jump hosts
as the client does. Its gevent patches nothing here: one host, one command after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from io import IOBase
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.config import Config
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.api.util import get_file_io
from pyinfra.connectors.base import BaseConnector
from pyinfra.connectors.util import CommandOutput, OutputLine, make_unix_command_for_host

from maestrale.machine.target import Completed, Target

COMMAND_SECONDS = 3600.0  # one command: the driver's module may be built on a small machine


class TargetConnector(BaseConnector):
    """Runs commands on `target`, set by a subclass. `last`: how the latest command ended."""

    handles_execution = True
    target: Target
    last: Completed = Completed(0, "", "")

    @staticmethod
    def make_names_data(name: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        yield name, {}, []

    def run_shell_command(
        self,
        command: StringCommand,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> tuple[bool, CommandOutput]:
        timeout = arguments.pop("_timeout", None) or COMMAND_SECONDS
        stdin = arguments.pop("_stdin", None)
        accepted = arguments.pop("_success_exit_codes", None) or [0]
        arguments.pop("_get_pty", None)
        line = make_unix_command_for_host(self.state, self.host, command, **arguments)
        given = "" if stdin is None else stdin
        done = self.target.run(line.get_raw_value(), input=given, timeout=timeout)
        self.last = done
        lines = [OutputLine("stdout", each) for each in done.stdout.splitlines()]
        lines += [OutputLine("stderr", each) for each in done.stderr.splitlines()]
        return done.rc in accepted, CommandOutput(lines)

    def put_file(
        self,
        filename_or_io: str | IOBase,
        remote_filename: str,
        remote_temp_filename: str | None = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        with get_file_io(filename_or_io) as file:  # type: ignore[arg-type]  # IOBase is wider
            data = file.read()
        done, _ = self.run_shell_command(
            StringCommand("cat", ">", QuoteString(remote_filename)),
            **(arguments | {"_stdin": data}),
        )
        return done

    def get_file(
        self,
        remote_filename: str,
        filename_or_io: str | IOBase,
        remote_temp_filename: str | None = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        raise NotImplementedError("set-up fetches no files")


def connect(target: Target, *, sudo: bool) -> tuple[State, Host, TargetConnector]:
    """A pyinfra state with one connected host. Raises: nothing; the first command may."""
    # Failures are told by us; pyinfra's log would go to the terminal beside it.
    log = logging.getLogger("pyinfra")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    connector = type("Connector", (TargetConnector,), {"target": target})
    inventory = Inventory((["@local"], {}))  # type: ignore[no-untyped-call]
    for host in inventory:
        host.connector_cls = connector
    # /tmp is there on every machine; asking for it would be one more command.
    config = Config(SUDO=sudo, TEMP_DIR="/tmp")  # type: ignore[no-untyped-call]  # noqa: S108
    state = State(inventory, config)
    host = next(iter(inventory))
    host.connect()
    state.activate_host(host)
    assert isinstance(host.connector, TargetConnector)
    return state, host, host.connector

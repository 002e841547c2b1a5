"""A port of another machine, reachable on this one: ssh -L, for as long as it is needed."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from maestrale.errors import MachineError, TargetUnreachable
from maestrale.machine.processes import end_group, scratch

CONNECT_SECONDS = 15


@contextlib.contextmanager
def tunnel(
    ssh: Sequence[str],
    login: str,
    local_port: int,
    remote_port: int,
    explain: Callable[[str], MachineError],
) -> Iterator[int]:
    """Gives the port here; `local_port` 0 means any. `explain` makes an error of ssh's words.

    Raises: MachineError when the port here is taken; what `explain` gives; TargetUnreachable.
    """
    port = _free_port(local_port)
    way = f"127.0.0.1:{port}:127.0.0.1:{remote_port}"
    with scratch() as err:
        process = subprocess.Popen(  # noqa: S603
            [*ssh, "-o", "ExitOnForwardFailure=yes", "-N", "-L", way, login],
            stdin=subprocess.DEVNULL,
            stdout=err,
            stderr=err,
            start_new_session=True,
        )
        try:
            _wait(process, port, err, login, explain)
            yield port
        finally:
            end_group(process)


def _wait(
    process: subprocess.Popen[bytes],
    port: int,
    err: IO[bytes],
    login: str,
    explain: Callable[[str], MachineError],
) -> None:
    ends = time.monotonic() + CONNECT_SECONDS + 5
    while time.monotonic() < ends:
        if process.poll() is not None:
            err.seek(0)
            raise explain(err.read().decode("utf-8", "replace"))
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise TargetUnreachable(f"No tunnel to {login} came up within {CONNECT_SECONDS + 5} s.")


def _free_port(wanted: int) -> int:
    """Raises: MachineError when `wanted` is taken."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ssh does
        try:
            one.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise MachineError(
                f"Port {wanted} of this machine is taken, so there can be no tunnel through it. "
                "Choose another one."
            ) from error
        return int(one.getsockname()[1])

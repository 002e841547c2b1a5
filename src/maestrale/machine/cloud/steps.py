"""What `create` does on the machine after its set-up: HTTPS, and waiting until it is healthy."""

from __future__ import annotations

import json
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from maestrale.errors import MachineError
from maestrale.machine.cloud import task
from maestrale.machine.cloud.task import FIRST_ANSWER_MINUTES
from maestrale.machine.setup.service import check_service, journal
from maestrale.machine.target import Target

CADDY = "docker.io/library/caddy:2.10"
_POLL_SECONDS = 2.0
_LOOK_SECONDS = 20.0  # between two looks at the service itself


@dataclass(frozen=True)
class Health:
    """What `/health` says: `state` such as starting or ready, and a detail for a person."""

    ready: bool
    state: str
    detail: str

    def line(self) -> str:
        return f"{self.state}: {self.detail}" if self.detail else self.state


def ask_health(url: str) -> Health | None:
    """One look; None where nothing answers yet. `url` is the server's, without /v1."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:  # noqa: S310
            body = answer.read(10_000)
            ready = True
    except urllib.error.HTTPError as error:
        body, ready = error.read(10_000), False
    except OSError:
        return None
    try:
        told = json.loads(body)
        return Health(ready, str(told.get("status", "")), str(told.get("detail") or ""))
    except (ValueError, AttributeError):
        return Health(ready, "ready" if ready else "not ready", "")


def wait_healthy(
    target: Target,
    url: str,
    say: Callable[[str], None],
    *,
    container: bool = False,
    limit: float = FIRST_ANSWER_MINUTES * 60.0,
) -> None:
    """Wait until the service is ready, telling what it does meanwhile.

    Raises: MachineError when it failed, or isn't ready after `limit` seconds.
    """
    begin, looked, told = time.monotonic(), time.monotonic(), ""
    while True:
        now = ask_health(url)
        if now is not None and now.ready:
            return
        line = now.line() if now is not None else "no answer yet"
        if line != told:
            say(f"  the service: {line}")
            told = line
        if not container and time.monotonic() - looked >= _LOOK_SECONDS:
            looked = time.monotonic()
            check_service(target)
        if time.monotonic() - begin >= limit:
            late = f"The service is not ready after {limit / 60:.3g} minutes. It said: {line}."
            raise MachineError(late if container else f"{late}\n{journal(target)}")
        time.sleep(_POLL_SECONDS)


def serve_domain(target: Target, domain: str, say: Callable[[str], None]) -> None:
    """Have Caddy answer for the domain by HTTPS, with a certificate of its own.

    It runs beside the service, on the machine's network, and speaks to its loopback only.
    Raises: MachineError.
    """
    say(f"Starting HTTPS for {domain} ...")
    to = f"127.0.0.1:{task.PORT}"
    run = [
        "docker run --detach --name maestrale-https --restart unless-stopped --network host",
        "--volume maestrale-https:/data",
        f"{CADDY} caddy reverse-proxy --from {shlex.quote(domain)} --to {to}",
    ]
    script = f"docker rm --force maestrale-https >/dev/null 2>&1\n{' '.join(run)}"
    done = target.run(script, as_root=True, timeout=600.0)
    if not done.ok:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MachineError(f"HTTPS for {domain} can't be started on {target.name}: {said}")

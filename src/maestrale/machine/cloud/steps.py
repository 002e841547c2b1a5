"""What `create` does on the machine: set-up, service, HTTPS, and waiting until it is healthy."""

from __future__ import annotations

import json
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from maestrale.errors import MachineError
from maestrale.machine import unit
from maestrale.machine.cloud import task
from maestrale.machine.cloud.task import FIRST_ANSWER_MINUTES
from maestrale.machine.target import Target

SERVICE = "maestrale"
UNIT = f"{SERVICE}.service"
UNIT_PATH = f"/etc/systemd/system/{UNIT}"
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


def start_service(
    target: Target, image: str, *, gpu: bool, model: str, secrets: dict[str, str]
) -> bool:
    """Have the image run as a service, now and at every boot; False when it did so already.

    It listens on the machine's loopback. The secrets go over SSH into a file for root alone.
    Raises: MachineError.
    """
    found = target.run("systemctl --version | sed -n 's/^systemd \\([0-9]*\\).*/\\1/p;1q'").stdout
    kilobytes = target.run(
        "sed -n 's/^MemTotal: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo"
    ).stdout.strip()
    container = unit.Container(
        image=image,
        gpus=gpu,
        publish=f"127.0.0.1:{task.PORT}",
        memory=int(kilobytes) * 1024 if kilobytes.isdigit() else 0,
    )
    text = unit.unit(
        SERVICE,
        container,
        ["--model", model] if model else [],
        systemd=int(found) if found.strip().isdigit() else 252,
    )
    place = unit.environment_file(SERVICE)
    changed = _put(target, place, unit.environment_text(secrets), "600")
    changed |= _put(target, UNIT_PATH, text, "644")
    active = target.run(f"systemctl is-active {UNIT}", timeout=30.0).stdout.strip() == "active"
    if active and not changed:
        return False
    script = f"systemctl daemon-reload && systemctl enable {UNIT} && systemctl restart {UNIT}"
    done = target.run(script, as_root=True, timeout=180.0)
    if not done.ok:
        raise MachineError(
            f"The service can't be started on {target.name}: {done.stderr.strip()[-300:]}\n"
            f"{journal(target)}"
        )
    return True


def _put(target: Target, path: str, text: str, mode: str) -> bool:
    """Write a file as root, whole or not at all; False when it was like that already."""
    there, part = shlex.quote(path), shlex.quote(f"{path}.part")
    script = (
        f'umask 077; mkdir -p -m 755 "$(dirname {there})" && cat >{part} && chmod {mode} {part} '
        f"|| exit 1\nif cmp -s {part} {there}; then rm -f {part}; echo same; "
        f"else mv -f {part} {there}; fi"
    )
    done = target.run(script, input=text, as_root=True)
    if not done.ok:
        raise MachineError(f"Can't write {path} on {target.name}: {done.stderr.strip()[-200:]}")
    return done.stdout.strip() != "same"


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


def check_service(target: Target) -> None:
    """Raises: MachineError with the end of its log when systemd has given the service up."""
    state = target.run(f"systemctl is-active {UNIT}", timeout=30.0).stdout.strip()
    if state == "failed":
        raise MachineError(f"The service failed on {target.name}.\n{journal(target)}")


def journal(target: Target) -> str:
    """The last lines of the service's log."""
    done = target.run(
        f"journalctl --unit {UNIT} --lines 15 --no-pager --output cat", as_root=True, timeout=30.0
    )
    return "The end of its log:\n" + "\n".join(
        f"  {line}" for line in done.stdout.strip().splitlines()
    )


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

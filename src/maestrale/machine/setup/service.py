"""The image as a service on a machine that is set up: start it, and ask how it does."""

from __future__ import annotations

import shlex

from maestrale.errors import MachineError
from maestrale.machine import unit
from maestrale.machine.target import Target

SERVICE = "maestrale"
UNIT = f"{SERVICE}.service"
UNIT_PATH = f"/etc/systemd/system/{UNIT}"


def start_service(
    target: Target,
    image: str,
    *,
    gpu: bool,
    port: int = 8000,
    model: str = "",
    secrets: dict[str, str] | None = None,
) -> bool:
    """Have the image run as a service, now and at every boot; False when it did so already.

    It listens at this port of the machine's loopback. The secrets go over SSH into a file for
    root alone; without any, what that file holds stays. Raises: MachineError.
    """
    found = target.run("systemctl --version | sed -n 's/^systemd \\([0-9]*\\).*/\\1/p;1q'").stdout
    kilobytes = target.run(
        "sed -n 's/^MemTotal: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo"
    ).stdout.strip()
    container = unit.Container(
        image=image,
        publish=f"127.0.0.1:{port}",
        gpus=gpu,
        memory=int(kilobytes) * 1024 if kilobytes.isdigit() else 0,
    )
    text = unit.unit(
        SERVICE,
        container,
        ["--model", model] if model else [],
        systemd=int(found) if found.strip().isdigit() else 252,
    )
    changed = _put(target, UNIT_PATH, text, "644")
    if secrets is not None:
        place = unit.environment_file(SERVICE)
        changed |= _put(target, place, unit.environment_text(secrets), "600")
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

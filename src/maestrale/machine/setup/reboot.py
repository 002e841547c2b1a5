"""Whether the driver works, whether only a reboot makes it work, and the reboot itself."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Sequence

from maestrale.errors import (
    HostKeyRefused,
    LoginRefused,
    MachineError,
    SetupError,
    TargetUnreachable,
)
from maestrale.machine.facts import MachineFacts
from maestrale.machine.probe import gather
from maestrale.machine.requirements import driver_suffices
from maestrale.machine.target import Target

UNIT = "maestrale-setup-resume.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
REBOOT_SECONDS = 900.0  # large machines count their memory for minutes
_BOOT = "cat /proc/sys/kernel/random/boot_id"


def driver_works(facts: MachineFacts) -> bool:
    """Whether a driver new enough is loaded and answers."""
    driver = facts.driver
    return driver is not None and driver.answers and driver_suffices(driver.loaded)


def load_driver(target: Target, facts: MachineFacts) -> MachineFacts:
    """Load what was just installed, where nothing else holds the GPU. Gives the new facts."""
    if driver_works(facts) or "nouveau" in facts.modules or (facts.driver and facts.driver.loaded):
        return facts
    target.run("modprobe nvidia && modprobe nvidia_uvm", as_root=True, timeout=120.0)
    return gather(target)


def reboot_reason(facts: MachineFacts) -> str:
    """Why the driver needs a reboot, as half a sentence; empty when it works."""
    driver = facts.driver
    if driver_works(facts):
        return ""
    if "nouveau" in facts.modules:
        return "the kernel uses nouveau, the free driver, and NVIDIA's takes its place at a boot"
    if driver is not None and driver.loaded and not driver_suffices(driver.loaded):
        return f"driver {driver.loaded} is still loaded, {driver.installed or 'a newer one'} waits"
    return f"the running kernel, {facts.kernel}, has not loaded the driver"


def reboot_to_come(facts: MachineFacts) -> str:
    """Why a driver that is yet to be installed will need a reboot; empty where it may need none."""
    driver = facts.driver
    if "nouveau" in facts.modules:
        return reboot_reason(facts)
    if driver is not None and driver.loaded and not driver_suffices(driver.loaded):
        return f"driver {driver.loaded} is loaded, and a newer one takes its place at a boot"
    return ""


def still_not(target: Target, facts: MachineFacts) -> SetupError:
    """The error for a driver that doesn't work even after a reboot."""
    said = facts.driver.failure if facts.driver is not None else "no driver is found"
    log = target.run("dmesg 2>/dev/null | grep -i -E 'nvidia|nvrm' | tail -n 4", as_root=True)
    lines = "".join(f"\n    {line[:200]}" for line in log.stdout.splitlines())
    return SetupError(
        f"The driver does not work on {target.name}, even after a reboot: {said or 'no answer'}. "
        f"'dkms status' and 'dmesg' there tell more; 'maestrale doctor' looks at all of it.{lines}"
    )


def reboot_and_wait(target: Target, *, limit: float = REBOOT_SECONDS) -> float:
    """Reboot a machine over SSH, and wait for it. Gives the seconds that it took.

    Raises: TargetUnreachable when it isn't back after `limit` seconds; LoginRefused and others
    when it comes back as another one.
    """
    before = target.run(_BOOT).stdout.strip()
    began = time.monotonic()
    # In a moment, so that this command still ends as it should; or it goes down at once.
    with contextlib.suppress(TargetUnreachable):
        target.run("(sleep 1; systemctl reboot || reboot) >/dev/null 2>&1 &", as_root=True)
    while time.monotonic() - began < limit:
        target.close()
        time.sleep(3.0)
        try:
            now = target.run(_BOOT, timeout=20.0).stdout.strip()
        except (HostKeyRefused, LoginRefused):
            raise
        except MachineError:
            continue
        if now and now != before:
            return time.monotonic() - began
    raise TargetUnreachable(
        f"{target.name} was told to reboot, and has not come back in {limit:.0f} s. Look at its "
        "console; once it is up, run this again: it goes on from there."
    )


def resume_unit(command: Sequence[str], environment: dict[str, str], folder: str = "/") -> str:
    """A unit that runs `command` in `folder` at the next boot, once: it takes itself away first."""
    # systemd reads % and $ even within quotes.
    words = " ".join(shlex.quote(word.replace("%", "%%").replace("$", "$$")) for word in command)
    variables = "".join(
        f'Environment="{name}={value.replace("%", "%%")}"\n' for name, value in environment.items()
    )
    return (
        "# Written by maestrale setup --reboot; removes itself.\n"
        "[Unit]\nDescription=maestrale setup goes on after the reboot\n"
        "Wants=network-online.target\nAfter=network-online.target docker.service\n\n"
        f"[Service]\nType=oneshot\nWorkingDirectory=-{folder.replace('%', '%%')}\n{variables}"
        f"ExecStartPre=/bin/rm -f {UNIT_FILE} /etc/systemd/system/multi-user.target.wants/{UNIT}\n"
        f"ExecStart={words}\nTimeoutStartSec=2h\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def reboot_here(target: Target, unit: str) -> None:
    """Have this machine go on by itself after its reboot, and reboot it. Raises: SetupError."""
    script = (
        f"cat > {UNIT_FILE} && systemctl daemon-reload && systemctl enable --quiet {UNIT} "
        "&& systemctl reboot"
    )
    done = target.run(script, input=unit, as_root=True)
    if not done.ok:
        raise SetupError(
            f"The reboot can't be done from here ({done.stderr.strip()[:200]}): reboot by hand, "
            "then run this again."
        )

"""What apt, dpkg and our own scripts wrote when they failed, as errors that tell what to do."""

from __future__ import annotations

import re

from maestrale.errors import (
    DiskFull,
    NoNetwork,
    PackagesBroken,
    PackagesLocked,
    RepositoryRefused,
    SetupError,
)
from maestrale.machine.setup import scripts

_NEXT = "What was done until then stays; run this again afterwards, and it goes on from there."

# The first that matches counts: a full disk breaks signatures and packages as well.
_KINDS: tuple[tuple[str, type[SetupError], str], ...] = (
    (
        r"No space left on device|not enough free (disk )?space|You don't have enough free space",
        DiskFull,
        "the machine's disk is full. Make room ('apt-get clean', 'docker system prune') or "
        "enlarge it.",
    ),
    (
        r"Could not get lock|Unable to (acquire|lock)|is another process using it",
        PackagesLocked,
        "another program is installing packages there (often the machine's own updates, soon "
        "after it started). Wait until it has ended; --wait-for-apt SECONDS waits longer.",
    ),
    (
        scripts.KEY_WRONG,
        RepositoryRefused,
        "the key that was fetched is not NVIDIA's (its fingerprint is another). Is something "
        "between the machine and NVIDIA, such as a proxy that changes answers?",
    ),
    (
        scripts.UNTRUSTED,
        RepositoryRefused,
        "a repository is not signed, or by another key than it should be, so nothing was taken "
        "from it, and it was taken out of apt's sources again. With --nvidia-repository: does "
        "--nvidia-key belong to it?",
    ),
    (
        rf"{scripts.KEY_UNREACHABLE}|Could not (resolve|connect)|Temporary failure resolving|"
        r"Connection (refused|timed out|failed)|Network is unreachable|Unable to connect|"
        r"Failed to fetch|Unable to fetch|Could not handshake|Certificate verification failed|"
        r"does not have a Release file",
        NoNetwork,
        "a package repository can't be reached from the machine. Has it a network, and a name "
        "server? Behind a proxy, set Acquire::http::Proxy in its /etc/apt/apt.conf.d.",
    ),
    (
        r"Unable to locate package|has no installation candidate|Couldn't find any package",
        PackagesBroken,
        "a package is not in the machine's repositories. On Ubuntu 'restricted' and 'universe' "
        "must be on, on Debian the usual mirrors.",
    ),
    (
        r"unmet dependencies|held broken packages|Unmet dependencies",
        PackagesBroken,
        "packages there contradict each other. 'sudo apt-get -f install' on it tells more.",
    ),
    (
        r"Bad return status for module build|dkms|Error! ",
        PackagesBroken,
        "the driver's kernel module could not be built; /var/lib/dkms/nvidia has its log.",
    ),
    (
        r"dpkg: error|Sub-process .*dpkg returned an error|dpkg was interrupted",
        PackagesBroken,
        "a package can't be installed.",
    ),
)


def explain(doing: str, machine: str, output: str) -> SetupError:
    """The error for a step that failed. `output`: all that its command wrote."""
    lines = _telling(output)
    for pattern, kind, told in _KINDS:
        if re.search(pattern, output):
            return kind(f"{doing}, on {machine}: {told}{_quoted(lines)}\n{_NEXT}")
    return SetupError(f"{doing}, on {machine}: it failed.{_quoted(lines)}\n{_NEXT}")


def _telling(output: str) -> list[str]:
    """The few lines that tell most: errors first, else the last ones."""
    every = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in every if re.match(r"(E|W|Err\S*|dpkg|maestrale|Error!?):?\s", line)]
    return list(dict.fromkeys(errors or every))[-4:]


def _quoted(lines: list[str]) -> str:
    return "".join(f"\n    {line[:200]}" for line in lines)

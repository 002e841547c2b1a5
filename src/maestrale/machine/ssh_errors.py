"""What the OpenSSH client's own failures mean, and what to do about each."""

from __future__ import annotations

import re

from maestrale.errors import (
    HostKeyRefused,
    LoginRefused,
    MachineError,
    NoSshClient,
    TargetUnreachable,
)

SSH_FAILED = 255  # the client's exit status when it failed itself

_CHANGED = "REMOTE HOST IDENTIFICATION HAS CHANGED"
_UNREACHABLE = (
    ("Could not resolve hostname", "its name can't be resolved", "Check the spelling and the DNS."),
    (
        "Connection refused",
        "nothing listens on port {port}",
        "Is an SSH server running there, on this port? Another one is given with --port.",
    ),
    (
        "timed out",
        "no answer on port {port}",
        "Is the machine started, and does its firewall (or the cloud's) let port {port} in?",
    ),
    ("No route to host", "there is no route to it", "Is the machine started? Check the address."),
    ("Network is unreachable", "there is no network", "Check the network here."),
    (
        "kex_exchange_identification",
        "it closed the connection at once",
        "It may still be starting, or bar this address for too many logins: wait a minute.",
    ),
    (
        "Connection closed by",
        "it closed the connection",
        "It may still be starting, or bar this address for too many logins: wait a minute.",
    ),
    (
        "command-line",
        "the SSH client does not take the --ssh-option ({last})",
        "man ssh_config lists what there is.",
    ),
    (
        "Bad configuration option",
        "the SSH client's options are wrong",
        "See ~/.ssh/config and --ssh-option.",
    ),
)


def no_client() -> NoSshClient:
    return NoSshClient(
        "There is no OpenSSH client (ssh) on this machine, and other machines are reached with "
        "it. Install it: apt-get install openssh-client (Debian, Ubuntu), dnf install "
        "openssh-clients (Fedora)."
    )


def explain(stderr: str, host: str, port: int, login: str, *, identity: str = "") -> MachineError:
    """The error for what `ssh` wrote when it ended with `SSH_FAILED`."""
    at = f"-p {port} " if port != 22 else ""
    command = f"ssh {at}{login}"
    if _CHANGED in stderr:
        known = host if port == 22 else f"[{host}]:{port}"
        return HostKeyRefused(
            f"{host} has another host key than the one known here. Either the machine was made "
            "anew, or someone stands between. Compare the key's fingerprint with what the "
            f"cloud's console shows; if it is right, forget the old one: ssh-keygen -R '{known}'"
        )
    if "Host key verification failed" in stderr or re.search(r"No .+ host key is known", stderr):
        return HostKeyRefused(
            f"{host} is not known here, so its key can't be checked. Log in once by hand and "
            f"compare the fingerprint: {command} - or take the key as it is, on a network that "
            "you trust, with --accept-new-host-key."
        )
    unusable = re.search(r"Load key .*?: (.+)", stderr)
    if "UNPROTECTED PRIVATE KEY FILE" in stderr:
        return LoginRefused(
            f"ssh does not use the key {identity or 'found here'}, as others may read it. Make it "
            f"private: chmod 600 {identity or 'FILE'}"
        )
    if unusable and identity:
        return LoginRefused(
            f"{identity} is no private key that ssh can read ({unusable[1].strip()}). Give the "
            "file without .pub, made by ssh-keygen."
        )
    if "Permission denied" in stderr or "Too many authentication failures" in stderr:
        way = f"the key {identity}" if identity else "none of the keys here"
        verb = "does not accept" if identity else "accepts"
        return LoginRefused(
            f"{host} {verb} {way} for {login}. Give the right one with --identity FILE (ssh-add it "
            "first if it has a passphrase), check the user's name, or put your key there: "
            f"ssh-copy-id {at}{login}"
        )
    for sign, what, remedy in _UNREACHABLE:
        if sign in stderr:
            told = what.format(port=port, last=_last_line(stderr).rstrip("."))
            return TargetUnreachable(f"Can't reach {host}: {told}. {remedy.format(port=port)}")
    said = _last_line(stderr) or "it said nothing"
    return TargetUnreachable(
        f"The SSH connection to {host} failed: {said} To see all of it: {command} -v"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    last = lines[-1][:300]
    return last if last.endswith((".", "!", "?")) else f"{last}."

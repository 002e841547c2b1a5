"""The operating system's part of what the probe wrote."""

from __future__ import annotations

import re
import shlex
from datetime import UTC
from email.utils import parsedate_to_datetime

from maestrale.machine.facts import OsRelease
from maestrale.machine.sections import Sections


def read_os(text: str) -> OsRelease:
    """From os-release, which is written as shell assignments."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if not equals or name.startswith("#"):
            continue
        try:
            values[name] = " ".join(shlex.split(value))
        except ValueError:  # an unclosed quote
            values[name] = value.strip("\"'")
    return OsRelease(
        id=values.get("ID", "").lower(),
        version=values.get("VERSION_ID", ""),
        codename=values.get("VERSION_CODENAME", ""),
        name=values.get("PRETTY_NAME") or values.get("NAME", ""),
        like=tuple(values.get("ID_LIKE", "").split()),
    )


def secure_boot(sections: Sections) -> bool | None:
    """From the firmware's variable: four bytes of attributes, then 1 or 0."""
    lines = sections["secure-boot"].lines
    if "secure-boot" in sections and not lines:
        return False  # no UEFI, so none
    values = [line.split() for line in lines[1:]]
    return values[0][-1] == "1" if values and values[0] else None


def listening(sections: Sections) -> tuple[int, ...] | None:
    """TCP ports on which something listens, on any address, from /proc/net/tcp."""
    section = sections["ports"]
    if not section.ok:
        return None
    rows = (line.split() for line in section.lines)
    ports = {
        int(row[1].rpartition(":")[2], 16)
        for row in rows
        if len(row) > 3 and row[3] == "0A" and re.fullmatch(r"[0-9A-F]+:[0-9A-F]{4}", row[1])
    }
    return tuple(sorted(ports))


def port_owners(sections: Sections) -> dict[int, str]:
    """Which program listens, where `ss` may tell."""
    owners = {}
    for line in sections["sockets"].lines:
        fields = line.split(None, 5)
        program = re.search(r'users:\(\("([^"]+)"', line)
        if len(fields) > 3 and program and (port := fields[3].rpartition(":")[2]).isdigit():
            owners[int(port)] = program[1]
    return owners


def apt_lock(sections: Sections) -> str:
    """What holds one of apt's locks: "process 1234", or nothing."""
    inodes, holders = set(), dict[str, str]()
    for line in sections["locks"].lines:
        fields = line.split()
        if len(fields) == 2 and fields[0].isdigit():
            inodes.add(fields[0])
        elif len(fields) >= 6 and fields[0].endswith(":") and fields[1] != "->":
            holders[fields[5].rpartition(":")[2]] = fields[4]
    held = [holders[inode] for inode in inodes if inode in holders]
    return f"process {held[0]}" if held else ""


def sudo_right(sections: Sections, is_root: bool) -> str:
    """root, passwordless, password, none or absent."""
    if is_root:
        return "root"
    if "sudo" not in sections:
        return "absent"
    text = sections["sudo"].text
    if re.search(r"^\s*\(ALL(\s*:\s*ALL)?\)\s+NOPASSWD:\s*ALL\s*$", text, re.MULTILINE):
        return "passwordless"
    if sections["sudo"].ok or "password is required" in text or "terminal is required" in text:
        return "password"
    return "none"


_MAKERS = (
    ("Paperspace", "Paperspace"),
    ("DigitalOcean", "DigitalOcean"),
    ("Amazon EC2", "AWS"),
    ("Google Compute Engine", "Google Cloud"),
    ("7783-7084-3265-9085-8269-3286-77", "Azure"),  # the asset tag that Azure gives its machines
    ("Microsoft Corporation", "Hyper-V"),
    ("Hetzner", "Hetzner"),
    ("Scaleway", "Scaleway"),
    ("OVH", "OVH"),
    ("OracleCloud", "Oracle Cloud"),
    ("Vultr", "Vultr"),
    ("Linode", "Linode"),
    ("Akamai", "Linode"),
    ("OpenStack", "OpenStack"),
    ("VMware", "VMware"),
    ("VirtualBox", "VirtualBox"),
    ("QEMU", "QEMU"),
)
_CLOUDS = {"aws": "AWS", "gce": "Google Cloud", "azure": "Azure", "openstack": "OpenStack"}


def provider(sections: Sections) -> str:
    """The cloud or hypervisor, from what the firmware says and cloud-init found."""
    text = " ".join(sections["maker"].lines)
    for sign, name in _MAKERS:
        if sign in text:
            return name
    lines = [line for line in sections["cloud-init"].lines if line != "running"]
    return _CLOUDS.get(lines[0], lines[0]) if lines else ""


def hub_answer(sections: Sections) -> tuple[str, int | None]:
    """("reached", how many seconds the machine's clock is ahead of the hub's), ("no-tool", None),
    or what went wrong; empty: not asked."""
    if "hub" not in sections:
        return "", None
    section = sections["hub"]
    asked = re.match(r"asked at (\d+)\n", section.text)
    text = section.text[asked.end() :] if asked else section.text
    if text.strip() == "no-tool":
        return "no-tool", None
    if re.search(r"^\s*HTTP/[\d.]+ \d{3}", text, re.MULTILINE):
        date = re.search(r"^\s*date:\s*(.+)$", text, re.MULTILINE | re.IGNORECASE)
        there = _timestamp(date[1]) if date else None
        return "reached", int(asked[1]) - there if asked and there is not None else None
    if section.hung or not text.strip():
        return "no answer within 6 s", None
    return text.strip().splitlines()[-1].strip()[:200], None


def _timestamp(text: str) -> int | None:
    try:
        when = parsedate_to_datetime(text.strip())
    except ValueError:
        return None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())

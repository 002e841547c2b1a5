"""What this process may use of the machine: cores and memory, within the limits of its cgroups.

A limit may stand at any level: on the process's own group, or on any above it (a container's, a
systemd slice's), in cgroup v1 or v2. The least of them counts. The kernel says which groups these
are in /proc/self/cgroup, and where they can be seen in /proc/self/mountinfo.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
_UNLIMITED = 1 << 60  # bytes; v1 writes "no limit" as nearly 2^63
_OCTAL = re.compile(r"\\([0-7]{3})")


def available_cores(proc: Path = PROC) -> int:
    """Cores that this process may run on: its affinity, and its cgroups' quotas, rounded up."""
    quotas = [math.ceil(share) for share in _quotas(proc) if share > 0]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def available_memory(proc: Path = PROC) -> int:
    """Bytes that can be used without swapping: the system's, or what a cgroup leaves."""
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            break
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([free, *_memory_left(proc)]))


def own_memory(proc: Path = PROC) -> int:
    """Bytes that this process holds already, and the server above it, but for files."""
    status = _text(proc / "self" / "status")
    parent = proc / (_field(status, "PPid") or "0")
    statuses = [status]
    if any(
        PurePosixPath(word).name == "maestrale" for word in _text(parent / "cmdline").split("\0")
    ):
        statuses.append(_text(parent / "status"))
    return sum(_size(each, "RssAnon") for each in statuses)


def held_memory(pid: int, proc: Path = PROC) -> int:
    """Bytes that a process and those below it hold, but for files."""
    statuses = {path.parent.name: _text(path) for path in proc.glob("[0-9]*/status")}
    found, parents = 0, {str(pid)}
    while parents:
        own = [statuses.pop(each) for each in parents & statuses.keys()]
        found += sum(_size(each, "RssAnon") + _size(each, "RssShmem") for each in own)
        parents = {each for each, status in statuses.items() if _field(status, "PPid") in parents}
    return found


def _size(status: str, name: str) -> int:
    """A size in /proc's `status`, in bytes; 0 where it doesn't say one."""
    number = _field(status, name).removesuffix("kB").strip()
    return int(number) * 1024 if number.isdigit() else 0


def _field(status: str, name: str) -> str:
    """What /proc's `status` says under a name; "" where it doesn't."""
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    return ""


def _quotas(proc: Path) -> Iterator[float]:
    """Cores of each quota on this process."""
    for folder in _groups(proc, ""):
        quota, _, period = _value(folder / "cpu.max").partition(" ")
        yield _share(quota, period)
    for folder in _groups(proc, "cpu"):
        yield _share(_value(folder / "cpu.cfs_quota_us"), _value(folder / "cpu.cfs_period_us"))


def _share(quota: str, period: str) -> float:
    """Cores; 0 for none given ("max", -1, no such file)."""
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return 0.0
    return int(quota) / int(period)


def _memory_left(proc: Path) -> Iterator[int]:
    """Bytes that each limit on this process leaves; files that are only cached give way."""
    for controller, limits, usage, cached in (
        ("", ("memory.max", "memory.high"), "memory.current", "inactive_file"),
        ("memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _groups(proc, controller):
            given = [value for name in limits if (value := _value(folder / name)).isdigit()]
            limit = min(map(int, given), default=_UNLIMITED)
            used = _value(folder / usage)
            if limit < _UNLIMITED and used.isdigit():
                yield limit - max(0, int(used) - _stat(folder / "memory.stat", cached))


def _stat(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _groups(proc: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those above it, as far as they can be seen.

    `controller` names one of cgroup v1; "" is cgroup v2.
    """
    own = _own_group(proc, controller)
    if own is None:
        return
    for root, mount in _mounts(proc, controller):
        # In a container without a namespace of its own the mount shows a part of the tree.
        inside = own.relative_to(root) if own.is_relative_to(root) else PurePosixPath()
        if ".." in inside.parts:
            inside = PurePosixPath()
        for part in (inside, *inside.parents):
            yield mount / part
        return


def _own_group(proc: Path, controller: str) -> PurePosixPath | None:
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = (line + "::").split(":", 2)
        if controller in controllers.split(","):
            return PurePosixPath(path.removesuffix("::"))
    return None


def _mounts(proc: Path, controller: str) -> Iterator[tuple[PurePosixPath, Path]]:
    """(which part of the tree, where it is mounted)."""
    for line in _text(proc / "self" / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        wanted = "cgroup" if controller else "cgroup2"
        if kind[0] == wanted and (not controller or controller in kind[2].split(",")):
            yield PurePosixPath(_plain(fields[3])), Path(_plain(fields[4]))


def _plain(field: str) -> str:
    """mountinfo writes spaces and the like as octal numbers."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _value(path: Path) -> str:
    """A file's one line; "" where it can't be read."""
    return _text(path).strip()


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="surrogateescape")
    except OSError:
        return ""

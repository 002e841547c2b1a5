"""Cores and memory within cgroups' limits: v1 and v2, at any level, as containers see them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maestrale.models import machine_limits
from maestrale.models.machine_limits import (
    available_cores,
    available_memory,
    held_memory,
    own_memory,
)

MIB = 1 << 20
HOST = 64 * 1024 * MIB


class Machine:
    """A /proc, and cgroup folders that its mountinfo points to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {HOST >> 10} kB\n")
        self.mounts: list[str] = []
        self.groups: list[str] = []

    def mount(self, name: str, controllers: str = "", root: str = "/", at: str = "") -> Path:
        """Of cgroup v1 with `controllers`, else v2."""
        where = self.folder / (at or name)
        where.mkdir(parents=True, exist_ok=True)
        kind = f"cgroup cgroup rw,{controllers}" if controllers else "cgroup2 cgroup rw"
        shown = str(where).replace(" ", "\\040")
        self.mounts.append(f"31 23 0:28 {root} {shown} rw,nosuid shared:9 - {kind}")
        (self.proc / "self" / "mountinfo").write_text(
            "1 0 8:1 / / rw - ext4 /dev/root rw\nnonsense\n" + "\n".join(self.mounts) + "\n"
        )
        return where

    def member(self, *lines: str) -> None:
        (self.proc / "self" / "cgroup").write_text("\n".join(lines) + "\n")

    def write(self, folder: Path, **values: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (folder / name.replace("__", ".")).write_text(value + "\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return Machine(tmp_path)


@pytest.mark.parametrize("level", ["", "system.slice", "system.slice/maestrale.service"])
def test_a_quota_of_v2_counts_at_any_level(machine: Machine, level: str) -> None:
    top = machine.mount("cgroup")
    machine.member("0::/system.slice/maestrale.service")
    machine.write(top / "system.slice" / "maestrale.service", cpu__max="max 100000")
    machine.write(top / "system.slice", cpu__max="max 100000")
    assert available_cores(machine.proc) == 16
    machine.write(top / level, cpu__max="150000 100000")
    assert available_cores(machine.proc) == 2
    machine.write(top / level, cpu__max="50000 100000")
    assert available_cores(machine.proc) == 1


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
@pytest.mark.parametrize("level", ["a", "a/b"])
def test_a_quota_of_v1_counts_at_any_level(machine: Machine, controllers: str, level: str) -> None:
    machine.mount("unified")  # beside it, as systemd's hybrid layout has it
    top = machine.mount("cpu folder", controllers)
    machine.member(f"4:{controllers}:/a/b", "3:cpuset:/x", "0::/")
    machine.write(top / "a" / "b", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert available_cores(machine.proc) == 16
    machine.write(top / level, cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert available_cores(machine.proc) == 3


def test_the_least_quota_counts_and_affinity_bounds_it(machine: Machine) -> None:
    top = machine.mount("cgroup")
    machine.member("0::/pod/container")
    machine.write(top / "pod", cpu__max="400000 100000")
    machine.write(top / "pod" / "container", cpu__max="800000 100000")
    assert available_cores(machine.proc) == 4
    machine.write(top / "pod", cpu__max="9900000 100000")
    machine.write(top / "pod" / "container", cpu__max="9900000 100000")
    assert available_cores(machine.proc) == 16


def test_a_container_that_sees_only_its_own_part(machine: Machine) -> None:
    """Docker with cgroup v1: the mount's root is the container's group on the host."""
    top = machine.mount("cpu", "cpu,cpuacct", root="/docker/0123")
    machine.member("4:cpu,cpuacct:/docker/0123")
    machine.write(top, cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    assert available_cores(machine.proc) == 2
    machine.member("4:cpu,cpuacct:/docker/0123/inner")
    machine.write(top / "inner", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    assert available_cores(machine.proc) == 1


@pytest.mark.parametrize("own", ["/", "/../../elsewhere", "/not/here"])
def test_a_namespace_whose_path_leads_nowhere_still_has_the_mounts_own_limit(
    machine: Machine, own: str
) -> None:
    top = machine.mount("cgroup")
    machine.member(f"0::{own}")
    machine.write(top, cpu__max="200000 100000")
    assert available_cores(machine.proc) == 2


def test_memory_of_v2_is_what_the_tightest_level_leaves(machine: Machine) -> None:
    top = machine.mount("cgroup")
    machine.member("0::/pod/box")
    assert available_memory(machine.proc) == HOST
    machine.write(top / "pod", memory__max=str(4096 * MIB), memory__current=str(1024 * MIB))
    machine.write(top / "pod" / "box", memory__max="max", memory__current=str(512 * MIB))
    assert available_memory(machine.proc) == 3072 * MIB
    machine.write(top / "pod" / "box", memory__high=str(1024 * MIB))
    assert available_memory(machine.proc) == 512 * MIB


def test_memory_of_v1(machine: Machine) -> None:
    top = machine.mount("memory", "memory")
    machine.member("9:memory:/docker/a b")
    inner = top / "docker" / "a b"
    machine.write(
        inner, memory__limit_in_bytes=str((1 << 63) - 4096), memory__usage_in_bytes=str(MIB)
    )
    assert available_memory(machine.proc) == HOST
    machine.write(
        top / "docker",
        memory__limit_in_bytes=str(2048 * MIB),
        memory__usage_in_bytes=str(1024 * MIB),
    )
    assert available_memory(machine.proc) == 1024 * MIB


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_are_only_cached_give_way(machine: Machine, version: int) -> None:
    """After a conversion the cache holds the model's files: memory is not full of them."""
    top = machine.mount("m", "memory" if version == 1 else "")
    machine.member("9:memory:/" if version == 1 else "0::/")
    names = (
        ("memory__limit_in_bytes", "memory__usage_in_bytes", "total_inactive_file")
        if version == 1
        else ("memory__max", "memory__current", "inactive_file")
    )
    stat = f"anon 5\n{names[2]} {3000 * MIB}\nactive_file 9"
    machine.write(
        top, **{names[0]: str(4096 * MIB), names[1]: str(4000 * MIB), "memory__stat": stat}
    )
    assert available_memory(machine.proc) == (4096 - 1000) * MIB


def test_more_in_use_than_allowed_leaves_nothing(machine: Machine) -> None:
    top = machine.mount("cgroup")
    machine.member("0::/")
    machine.write(top, memory__max=str(MIB), memory__current=str(2 * MIB))
    assert available_memory(machine.proc) == 0


def test_without_cgroups_the_system_says_it_all(machine: Machine) -> None:
    assert available_cores(machine.proc) == 16
    assert available_memory(machine.proc) == HOST
    machine.member("nonsense", "0::")
    (machine.proc / "self" / "mountinfo").write_bytes(b"\xff\xfe broken\n - \n")
    assert available_cores(machine.proc) == 16


def test_what_this_machine_says() -> None:
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))
    assert 0 < available_memory() < 1 << 50
    assert machine_limits.PROC.is_dir()


def test_what_is_held_already_is_this_process_and_the_server_above_it(tmp_path: Path) -> None:
    def process(number: str, parent: int, size: int, *words: str) -> None:
        (tmp_path / number).mkdir()
        lines = f"Name:\tx\nPPid:\t{parent}\nVmRSS:\t999 kB\nRssAnon:\t{size} kB\n"
        (tmp_path / number / "status").write_text(lines)
        (tmp_path / number / "cmdline").write_text("\0".join((*words, "")))

    process("self", 7, 60)
    process("7", 1, 70, "python", "-m", "maestrale", "serve")
    assert own_memory(tmp_path) == 130 << 10
    (tmp_path / "7" / "cmdline").write_text("/opt/bin/maestrale\0serve\0")
    assert own_memory(tmp_path) == 130 << 10
    (tmp_path / "7" / "cmdline").write_text("bash\0/home/maestrale/x\0")
    assert own_memory(tmp_path) == 60 << 10
    assert own_memory(tmp_path / "none") == 0


def test_what_a_process_holds_is_counted_with_those_below_it(machine: Machine) -> None:
    """Not those beside it, nor what is of files, nor what has no such lines (the kernel's own)."""
    for pid, parent, anonymous in ((7, 1, 300), (8, 7, 200), (9, 8, 50), (10, 1, 1000), (11, 9, 0)):
        (machine.proc / str(pid)).mkdir()
        sizes = f"RssAnon:\t {anonymous} kB\nRssFile:\t 999 kB\nRssShmem:\t 5 kB\n"
        (machine.proc / str(pid) / "status").write_text(
            f"Name:\tx\nPPid:\t{parent}\n{sizes if anonymous else ''}"
        )
    assert held_memory(7, machine.proc) == (300 + 200 + 50 + 3 * 5) << 10
    assert held_memory(9, machine.proc) == 55 << 10
    assert held_memory(12, machine.proc) == 0
    assert held_memory(os.getpid()) > 10 * MIB

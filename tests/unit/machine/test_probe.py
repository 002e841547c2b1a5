"""The probe for real, on this machine: in each shell, with little around it, and its effects."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from maestrale.machine.facts import pci_gpu
from maestrale.machine.probe import probe_script, read_facts
from maestrale.machine.sections import split_sections
from maestrale.machine.target import Target

SHELLS = [["sh"], ["dash"], ["bash", "--posix"], ["bash"], ["busybox", "sh"]]
SCRIPT = f"{{\n{probe_script()}\n}} </dev/null\n"


def probe(
    shell: list[str], environment: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> str:
    done = subprocess.run(
        [*prefix, str(shutil.which(shell[0])), *shell[1:], "-s"],
        input=SCRIPT,
        env=environment if environment is not None else dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_shell_sees_the_same_machine(shell: list[str]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]}")
    facts = read_facts(probe(shell))
    release = platform.freedesktop_os_release()
    assert (facts.os.id, facts.os.version) == (release["ID"], release.get("VERSION_ID", ""))
    assert (facts.system, facts.kernel, facts.arch) == (
        "Linux",
        platform.release(),
        platform.machine(),
    )
    assert facts.is_root == (os.geteuid() == 0)
    assert facts.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert facts.cpu.count == len(os.sched_getaffinity(0))
    root = next(one for one in facts.disks if one.path == "/")
    assert root.size == os.statvfs("/").f_frsize * os.statvfs("/").f_blocks
    assert facts.ports is not None
    assert facts.unanswered == ()


@pytest.mark.parametrize(
    "environment",
    [{}, {"PATH": "/nonexistent"}, {"PATH": "/bin", "LC_ALL": "tr_TR.UTF-8", "LANG": "xx_YY"},
     {"HOME": "/nonexistent", "PATH": "/usr/bin"}, {"PATH": "", "HOME": ""}],
    ids=["nothing", "no PATH", "odd locale", "no home", "all empty"],
)  # fmt: skip
def test_little_around_it_is_enough(environment: dict[str, str]) -> None:
    facts = read_facts(probe(["sh"], environment))
    assert facts.kernel == platform.release()
    assert facts.disks
    assert facts.unanswered == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_user_without_rights_sees_the_machine_too() -> None:
    plain = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    facts = read_facts(probe(["sh"], prefix=plain))
    assert not facts.is_root
    assert facts.sudo != "root"
    assert facts.kernel == platform.release()
    assert facts.memory > 0
    assert facts.disks
    assert facts.ports is not None


_WRITES = re.compile(
    r"open(at)?\(.*(O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND)|"
    r"\b(mkdir|rmdir|unlink|rename|link|symlink|mknod|chmod|fchmod|chown|lchown|fchown|truncate|"
    r"ftruncate|utime|utimes|utimensat|setxattr|removexattr|mount|umount2|init_module|"
    r"finit_module|kexec_load|reboot|sethostname|settimeofday|clock_settime|swapon)"
    r"(at|at2|2)?\("
)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_it_changes_nothing(tmp_path: Path) -> None:
    """By the system calls of it and all its children: none that writes succeeds."""
    log = tmp_path / "calls"
    script = f"{{\n{probe_script('http://127.0.0.1:9', 8000)}\n}} </dev/null\n"
    calls = (
        "trace=%file,fchmod,fchown,ftruncate,mount,umount2,init_module,finit_module,kexec_load,"
        "reboot,sethostname,settimeofday,clock_settime,swapon"
    )
    done = subprocess.run(
        ["strace", "-f", "-qq", "-e", calls, "-e", "signal=none", "-o", str(log), "sh", "-s"],
        input=script,
        capture_output=True,
        text=True,
        timeout=200,
    )
    if "ptrace" in done.stderr and not done.stdout:
        pytest.skip("this system allows no tracing")
    assert done.stdout.rstrip().endswith("@@end")
    lines = log.read_text(errors="replace").splitlines()
    assert any("/etc/os-release" in line for line in lines)
    allowed = re.compile(r'"/dev/(null|tty|pts/\d+)"|"/proc/self/|= -1 E')
    assert [one for one in lines if _WRITES.search(one) and not allowed.search(one)] == []


def test_the_check_for_writes_would_see_one(tmp_path: Path) -> None:
    for call in (
        'openat(AT_FDCWD, "/etc/x", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 3',
        'mkdir("/root/.docker", 0700) = 0',
        'renameat2(AT_FDCWD, "/a", AT_FDCWD, "/b", 0) = 0',
        'unlink("/tmp/x") = 0',
    ):
        assert _WRITES.search(f"4711 {call}"), call
    assert not _WRITES.search('4711 openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3')


def fake(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("timeout", ["kill", "plain", "none"])
def test_a_program_that_hangs_costs_its_limit_and_no_more(tmp_path: Path, timeout: str) -> None:
    """With coreutils' timeout, with an older one that knows no -k, and with none at all."""
    fake(tmp_path, "nvidia-ctk", "trap '' TERM; while :; do sleep 1; done")
    if timeout == "plain":
        fake(tmp_path, "timeout", '[ "$1" != -k ] && exec /usr/bin/timeout -s KILL "$@"')
    elif timeout == "none":
        fake(tmp_path, "timeout", "exit 1")
    script = SCRIPT.replace("ran 10 toolkit", "ran 1 toolkit")
    done = subprocess.run(
        ["sh", "-s"],
        input=script,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    sections = split_sections(done.stdout)
    assert sections["toolkit"].hung
    assert sections.unanswered == ("toolkit",)
    assert "disks" in sections  # and it went on
    assert done.stdout.rstrip().endswith("@@end")


def test_the_whole_has_a_limit_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maestrale.machine.probe import gather

    fake(tmp_path, "nvidia-ctk", "exec sleep 100")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Target.parse(None) as here:
        facts = gather(here, timeout=8)
    assert facts.kernel == platform.release()
    assert facts.unanswered == ("toolkit",)


@pytest.mark.parametrize(
    ("ids", "name", "architecture", "capability"),
    [
        ("0x2231", "RTX A5000", "Ampere", (8, 6)),
        ("0x20b5", "A100 PCIe 80 GB", "Ampere", (8, 0)),
        ("0x2330", "H100 SXM5 80 GB", "Hopper", (9, 0)),
        ("0x26b9", "L40S", "Ada Lovelace", (8, 9)),
        ("0x2b85", "GeForce RTX 5090", "Blackwell", (12, 0)),
        ("0x1db6", "Tesla V100 PCIe 32 GB", "Volta", (7, 0)),
        ("0x1e81", "", "Turing", (7, 5)),
        ("0x4242", "", "", None),
    ],
)
def test_gpus_by_their_ids(
    ids: str, name: str, architecture: str, capability: tuple[int, int] | None
) -> None:
    gpu = pci_gpu("0000:01:00.0", "0x10de", ids, "")
    assert (gpu.name, gpu.architecture, gpu.capability) == (name, architecture, capability)

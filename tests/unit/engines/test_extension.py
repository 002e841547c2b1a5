"""When the extension is made, kept, believed and refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import openvino as ov
import pytest

from maestrale.engines.openvino.weights import extension as module
from maestrale.engines.openvino.weights.extension import add_extension, extension, kept, unavailable
from maestrale.errors import EngineError


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CXX, a CPU that has what is needed, and nothing compiled for this process before."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(module, "cpu_lacks", lambda: "")
    module._in_memory.cache_clear()


def compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of the compiler; `$out` is the file to make."""
    program = folder / "compiler"
    program.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; out=$2\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    return program


@pytest.fixture
def keeping(tmp_path: Path) -> Path:
    folder = tmp_path / "a8-2"
    folder.mkdir(mode=0o755)
    return folder


def test_a_cpu_without_its_instructions_is_refused_also_what_was_shipped(
    keeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, 'echo made >"$out"', monkeypatch)
    extension(keeping)
    monkeypatch.undo()
    monkeypatch.setattr(module, "cpu_identity", lambda: "Old CPU; fpu sse2 avx avx2")
    assert "lacks AVX2, FMA or F16C" in unavailable(keeping)
    with pytest.raises(EngineError, match="lacks AVX2, FMA or F16C"):
        extension(keeping)


def test_without_a_compiler_it_says_what_to_install(
    keeping: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "apt install g++" in unavailable(keeping)
    with pytest.raises(EngineError, match=r"no C\+\+ compiler.*leave the option out"):
        extension(keeping)
    assert list(keeping.iterdir()) == []


def test_a_compiler_that_is_asked_for_and_not_there_is_told(
    keeping: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert "CXX names 'no-such-compiler'" in unavailable(keeping)


def test_an_openvino_without_its_libraries(keeping: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/true")
    monkeypatch.setattr(module, "LIBRARIES", ("libnone.so",))
    assert "without the libraries" in unavailable(keeping)


def test_it_is_made_once(keeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, f'echo made >"$out"; echo . >>{tmp_path}/calls', monkeypatch)
    done = extension(keeping)
    assert kept(keeping) == extension(keeping) == done
    assert [done] == list(keeping.iterdir())
    assert (tmp_path / "calls").read_text() == ".\n"
    # It goes on to be used where the compiler is gone.
    monkeypatch.setenv("CXX", "gone")
    assert unavailable(keeping) == ""
    assert extension(keeping) == done


def test_what_was_shipped_serves_every_model(
    keeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, 'echo made >"$out"', monkeypatch)
    made = extension(keeping)
    shipped = made.rename(tmp_path / made.name)
    monkeypatch.setattr(module, "SHIPPED", shipped.parent)
    monkeypatch.setenv("CXX", "gone")
    another = tmp_path / "another"
    assert unavailable(another) == ""
    assert extension(another) == shipped


def test_another_source_or_version_is_made_anew(
    keeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, 'echo made >"$out"', monkeypatch)
    changed = tmp_path / "projection.cpp"
    changed.write_text(module.SOURCE.read_text() + "// another")
    names = {extension(keeping).name}
    for name, value in (
        ("SOURCE", changed),
        ("version", lambda package: "another"),
        ("FLAGS", (*module.FLAGS, "-g")),
    ):
        monkeypatch.setattr(module, name, value)
        module.digest.cache_clear()
        assert kept(keeping) is None
        names.add(extension(keeping).name)
    monkeypatch.undo()
    module.digest.cache_clear()
    assert len(names) == 4


def test_what_the_compiler_objects_to_is_told(
    keeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "echo 'In file x:' >&2; echo 'x.cpp:3:1: fatal error: no such header' >&2; exit 1"
    program = compiler(tmp_path, f'echo half >"$out"; {script}', monkeypatch)
    with pytest.raises(EngineError, match=r"fatal error: no such header\.$") as caught:
        extension(keeping)
    assert str(program) in str(caught.value)
    assert list(keeping.iterdir()) == []


@pytest.mark.parametrize("script", ["exit 3", ""])
def test_a_compiler_that_says_nothing_and_makes_nothing(
    keeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    compiler(tmp_path, script, monkeypatch)
    with pytest.raises(EngineError, match="it gave no reason"):
        extension(keeping)


def test_a_compiler_that_hangs_is_ended_with_its_children(
    keeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, f"sleep 300 & echo $! >{tmp_path}/child; wait", monkeypatch)
    monkeypatch.setattr(module, "SECONDS", 0.5)
    with pytest.raises(EngineError, match="took more than"):
        extension(keeping)
    child = (tmp_path / "child").read_text().strip()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)
    assert list(keeping.iterdir()) == []


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_a_killed_process_left_is_removed(
    keeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, 'echo made >"$out"', monkeypatch)
    abandoned = keeping / f"projection-{module.digest()}.so.4194304"  # no process has this number
    abandoned.touch()
    assert [extension(keeping)] == list(keeping.iterdir())


@pytest.mark.parametrize("place", ["file", "folder"])
def test_what_others_may_write_is_not_loaded(
    keeping: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    compiler(tmp_path, 'echo made >"$out"', monkeypatch)
    done = extension(keeping)
    done.write_text("planted")
    (done if place == "file" else keeping).chmod(0o777)
    assert kept(keeping) is None
    again = extension(keeping)
    assert again.read_text() == "made\n"
    if place == "file":
        assert again == done
        assert kept(keeping) == done
    else:
        assert str(again).startswith("/proc/self/fd/")
        assert "other users may write a8-2" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_not_loaded(
    keeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, 'echo made >"$out"', monkeypatch)
    done = extension(keeping)
    os.chown(done, 12345, 12345)
    assert kept(keeping) is None
    assert extension(keeping).stat().st_uid == 0


@pytest.mark.parametrize("why", ["noexec", "read-only"])
def test_a_folder_that_can_not_keep_it_is_told_once(
    keeping: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    why: str,
) -> None:
    compiler(tmp_path, 'echo made >"$out"', monkeypatch)
    flags = os.ST_NOEXEC if why == "noexec" else 0
    monkeypatch.setattr(os, "statvfs", lambda path: type("S", (), {"f_flag": flags})())
    access = os.access
    if why == "read-only":  # to root nothing is, but what is mounted so
        monkeypatch.setattr(os, "access", lambda path, how: path != keeping and access(path, how))
    first, second = extension(keeping), extension(keeping)
    assert first == second
    assert first.read_text() == "made\n"
    assert list(keeping.iterdir()) == []
    assert caplog.text.count("compiled at each start") == 1


def test_the_real_one_is_loaded_also_from_memory(
    kernel: Path, keeping: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler(tmp_path, f'cp {kernel} "$out"', monkeypatch)
    assert add_extension(ov.Core(), keeping).parent == keeping
    keeping.chmod(0o777)
    assert str(add_extension(ov.Core(), keeping)).startswith("/proc/self/fd/")


def test_what_can_not_be_loaded_is_told(
    keeping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, 'echo no library >"$out"', monkeypatch)
    with pytest.raises(EngineError, match=r"can't be loaded: .*too short\. Remove "):
        add_extension(ov.Core(), keeping)

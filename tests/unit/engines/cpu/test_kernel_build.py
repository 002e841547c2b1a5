"""When the kernel's library is made, kept, believed and refused; and by which compiler."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from kernel_models import kernel
from maestrale.engines.cpu.kernel import build as module
from maestrale.engines.cpu.kernel import compilers
from maestrale.engines.cpu.kernel import wheel as wheel_module
from maestrale.engines.cpu.kernel.build import KEPT, library, name, prebuilt, sources
from maestrale.engines.cpu.kernel.compilers import CompileTarget
from maestrale.engines.cpu.library import ABI
from maestrale.errors import EngineError
from maestrale.models.wheels import Wheel

SOURCE = Path(module.__file__).parents[4]


def silent(phase: str, fraction: float | None) -> None:
    pass


@pytest.fixture(autouse=True)
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No CXX, nothing prebuilt, and nothing compiled for this process before."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(module, "PREBUILT", tmp_path / "none")
    module._in_memory.cache_clear()
    name.cache_clear()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    return folder


def compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of the compiler; `$out` is the file to make."""
    program = folder / "compiler"
    find = 'for arg; do [ "$last" = -o ] && out=$arg; last=$arg; done'
    program.write_text(f"#!/bin/sh\n{find}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    return program


def test_it_is_made_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, f'echo made >"$out"; echo . >>{tmp_path}/calls', monkeypatch)
    phases: list[float] = []
    done = library(cache, lambda phase, fraction: phases.append(fraction or 0.0))
    assert [done] == list((cache / KEPT).iterdir())
    assert (tmp_path / "calls").read_text() == ".\n" * (len(sources(CompileTarget.here())) + 1)
    assert phases[0] == 0.0
    assert phases == sorted(phases)
    # It goes on to be used where the compiler is gone.
    monkeypatch.setenv("CXX", "gone")
    assert library(cache, silent) == done


def test_every_file_is_compiled_for_its_level_alone(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs before the CPU is known, or on any, has no instructions that some lack."""
    compiler(tmp_path, f'echo "$@" >>{tmp_path}/calls; echo made >"$out"', monkeypatch)
    library(cache, silent)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all("-ffp-contract=off" in call for call in calls[:-1])
    for path, level in sources(CompileTarget.here()):
        call = next(call for call in calls if f" {path} " in call)
        assert ("avx2" in call or "dotprod" in call) == bool(level)
    linked = [Path(word).stem for word in calls[-1].split() if word.endswith(".o")]
    assert linked == [path.stem for path, _ in sources(CompileTarget.here())]
    assert list(dict.fromkeys(level for _, level in sources(CompileTarget.here()))) == [
        "",
        *CompileTarget.here().levels(),
    ]


def test_another_source_flag_or_machine_has_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {name()}
    changed = tmp_path / "sources"
    changed.mkdir()
    for file in [*module.SOURCES.glob("*.[ch]pp"), *module.SOURCES.glob("*.h")]:
        (changed / file.name).write_text(file.read_text())
    (changed / "pool.cpp").write_text("// another")
    for what, value in (("SOURCES", changed), ("FLAGS", (*module.FLAGS, "-g"))):
        monkeypatch.setattr(module, what, value)
        name.cache_clear()
        names.add(name())
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    name.cache_clear()
    names.add(name())
    monkeypatch.undo()
    name.cache_clear()
    assert len(names) == 4


def test_a_prebuilt_one_is_taken_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, 'echo made >"$out"', monkeypatch)
    made = library(cache, silent)
    place = tmp_path / "place"
    place.mkdir(mode=0o755)
    shipped = made.rename(place / made.name)
    place.chmod(0o775)  # as pip makes it where a user has a group of their own
    monkeypatch.setattr(module, "PREBUILT", place)
    monkeypatch.setenv("CXX", "gone")
    assert library(cache, silent) == prebuilt() == shipped
    # One of other sources isn't.
    shipped.rename(place / "libmaestrale-x86_64-0000.so")
    assert prebuilt() is None


@pytest.mark.parametrize("writable", ["folder", "file"])
def test_what_others_can_write_is_not_loaded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: str
) -> None:
    compiler(tmp_path, 'echo made >"$out"', monkeypatch)
    done = library(cache, silent)
    (done.parent if writable == "folder" else done).chmod(0o777)
    done.write_text("theirs")
    found = library(cache, silent)
    assert found.read_text() == "made\n"
    assert (found == done) == (writable == "file")  # made anew, and replaced


def test_a_folder_that_cannot_keep_it_gets_none(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler(tmp_path, f'echo made >"$out"; echo . >>{tmp_path}/calls', monkeypatch)
    (cache / KEPT).mkdir()
    (cache / KEPT).chmod(0o777)
    found = library(cache, silent)
    assert found.read_text() == "made\n"
    assert list((cache / KEPT).iterdir()) == []
    assert "other users may write kernel" in caplog.text
    calls = (tmp_path / "calls").read_text()
    assert library(cache, silent) == found
    assert (tmp_path / "calls").read_text() == calls


def test_what_the_compiler_objects_to_is_told(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "echo 'In file x:' >&2; echo 'x.cpp:3:1: fatal error: no such header' >&2; exit 1"
    program = compiler(tmp_path, f'echo half >"$out"; {script}', monkeypatch)
    with pytest.raises(
        EngineError, match=r"fatal error: no such header\. Another compiler"
    ) as told:
        library(cache, silent)
    assert str(program) in str(told.value)
    assert list((cache / KEPT).iterdir()) == []


@pytest.mark.parametrize("script", ["exit 3", ""])
def test_a_compiler_that_says_nothing_and_makes_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    compiler(tmp_path, script, monkeypatch)
    with pytest.raises(EngineError, match="gave no reason"):
        library(cache, silent)


def test_a_compiler_that_hangs_is_ended_with_its_children(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, f"sleep 300 & echo $! >>{tmp_path}/children; wait", monkeypatch)
    monkeypatch.setattr(module, "SECONDS", 1.0)
    with pytest.raises(EngineError, match="took more than"):
        library(cache, silent)
    children = (tmp_path / "children").read_text().split()
    deadline = time.monotonic() + 10
    while any(running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(child) for child in children)


def running(process: str) -> bool:
    try:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_compiler_that_is_asked_for_and_not_there_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(EngineError, match="CXX names 'no-such-compiler'"):
        library(cache, silent)


def test_another_processor_is_refused_by_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(EngineError, match="this machine is riscv64"):
        library(cache, silent)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a compiler; a folder of wheels in the place of the package index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "tiny_zig-1.0.dist-info"
    wheel = folder / "tiny_zig-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        program = zipfile.ZipInfo("ziglang/zig")
        program.external_attr = 0o100755 << 16
        find = 'for arg; do [ "$last" = -o ] && out=$arg; last=$arg; done'
        archive.writestr(program, f'#!/bin/sh\n{find}\necho "$ZIG_GLOBAL_CACHE_DIR" >"$out"\n')
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-zig\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(compilers, "ZIG", Wheel("tiny-zig", "1.0", (digest,)))
    monkeypatch.setattr(compilers, "COMPILERS", ("no-such-compiler",))
    monkeypatch.setattr(compilers, "find_spec", lambda name: None)
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(folder))
    return folder


def test_without_a_compiler_one_is_fetched_once(index: Path, cache: Path) -> None:
    phases: list[str] = []
    done = library(cache, lambda phase, fraction: phases.append(phase))
    package = cache / "packages" / "tiny-zig-1.0"
    assert done.read_text() == f"{package / 'cache'}\n"
    assert "Fetching a C++ compiler" in phases[0]
    assert "Compiling" in phases[-1]
    done.unlink()
    next(index.iterdir()).unlink()
    assert library(cache, silent) == done


def test_a_fetched_compiler_that_others_can_write_is_not_run(index: Path, cache: Path) -> None:
    library(cache, silent).unlink()
    program = cache / "packages" / "tiny-zig-1.0" / "package" / "ziglang" / "zig"
    program.chmod(0o777)
    with pytest.raises(EngineError, match=r"can't be trusted: other users may write zig\. Remove"):
        library(cache, silent)


def test_a_tampered_compiler_is_refused(index: Path, cache: Path) -> None:
    with zipfile.ZipFile(next(index.iterdir()), "a") as archive:
        archive.writestr("ziglang/more", "")
    with pytest.raises(EngineError, match=r"apt install g\+\+.*can't be fetched"):
        library(cache, silent)
    assert not list(cache.rglob("zig"))


def test_where_new_files_are_writable_by_the_group_the_fetched_one_is_still_believed(
    index: Path, cache: Path
) -> None:
    """As Fedora sets it for its users."""
    before = os.umask(0o002)
    try:
        done = library(cache, silent)
    finally:
        os.umask(before)
    assert done.parent == cache / KEPT


def test_offline_and_without_a_compiler_it_says_what_to_do(index: Path, cache: Path) -> None:
    next(index.iterdir()).unlink()
    with pytest.raises(
        EngineError, match=r"there is no C\+\+ compiler\. Install one .*apt install"
    ) as told:
        library(cache, silent)
    assert "Is there a network?" in str(told.value)


def test_a_wheel_brings_one_for_each_architecture_and_each_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zig = compiler(tmp_path, f'echo "$@" >>{tmp_path}/calls; echo made >"$out"', monkeypatch)
    monkeypatch.setattr(wheel_module, "ZIG_MODULE", (str(zig),))
    files = wheel_module.libraries(tmp_path / "kept", silent)
    assert wheel_module.tag() == "py3-none-manylinux_2_17_aarch64.manylinux_2_17_x86_64"
    linked = [call for call in (tmp_path / "calls").read_text().splitlines() if "-shared" in call]
    for machine, file, call in zip(("aarch64", "x86_64"), files, linked, strict=True):
        assert f"-target {machine}-linux-gnu.2.17 " in call
        # Whichever compiler made it: the name is the one that such a machine looks for.
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        monkeypatch.setattr(module, "PREBUILT", file.parent)
        name.cache_clear()
        assert library(tmp_path / "cache", silent) == file
    # They are kept for the next wheel of the same sources.
    monkeypatch.setattr(wheel_module, "ZIG_MODULE", ("gone",))
    assert wheel_module.libraries(tmp_path / "kept", silent) == files


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_an_empty_machine_without_a_compiler_the_real_one_is_fetched(tmp_path: Path) -> None:
    """The package ziglang, from the index; what it makes gives the bits that another's gives."""
    settings = {name: value for name, value in os.environ.items() if name != "CXX"}
    settings |= {"HOME": str(tmp_path), "PATH": "/nowhere", "PYTHONPATH": str(SOURCE)}
    script = (
        "import ctypes, sys; from pathlib import Path\n"
        "from maestrale.engines.cpu.kernel.build import library\n"
        "file = library(Path(sys.argv[1]), lambda phase, fraction: print(phase))\n"
        "lib = ctypes.CDLL(str(file)); lib.mst_level_name.restype = ctypes.c_char_p\n"
        "print(lib.mst_level_name(lib.mst_best_level()).decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("Fetching a C++ compiler (the package ziglang")
    assert said[1].startswith("Compiling the CPU engine's kernel")
    mine = kernel()
    assert said[-1] == mine.mst_level_name(mine.mst_best_level()).decode()


def test_the_real_one_is_a_library_of_this_interface() -> None:
    lib = kernel()
    assert lib.mst_abi() == ABI
    assert lib.mst_has_level(0)
    best = lib.mst_best_level()
    assert lib.mst_has_level(best)
    assert lib.mst_level_name(best) in (b"scalar", b"avx2", b"avx512", b"amx", b"neon", b"i8mm")
    assert lib.mst_level_name(99) == b"unknown"
    assert not lib.mst_has_level(99)
    assert not lib.mst_has_level(-1)
    assert ctypes.c_char_p(lib.mst_arithmetic()).value

"""The same bits on other machines: programs in C++, compiled for this CPU's levels and, where there
are a cross compiler and qemu, for 64-bit ARM.
"""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernel_models import kernel, levels
from maestrale.config.paths import default_cache_dir
from maestrale.engines.cpu.kernel import build, compilers
from serving import ROOT

NATIVE = ROOT / "tests" / "native"
INCLUDE = f"-I{build.SOURCES}"
CROSS = "aarch64-linux-gnu-g++"
QEMU = "qemu-aarch64"
PACKING = ("types", "iq_types", "pack")
needs_arm = pytest.mark.skipif(
    not (shutil.which(CROSS) and shutil.which(QEMU)),
    reason="needs g++-aarch64-linux-gnu and qemu-user",
)
COMPILER = shutil.which("c++") or "c++"
pytestmark = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def vectors(folder: Path, level: str, compiler: str, flags: list[str]) -> Path:
    program = folder / f"vectors-{level}-{Path(compiler).name}"
    names = [f"-DLEVEL={level}", f"-DLEVEL_{level.upper()}"]
    link = ["-static"] if compiler == CROSS else []
    run(
        *(compiler, *build.FLAGS, *flags, *names, *link, INCLUDE),
        *(NATIVE / "vectors_digest.cpp", "-o", program),
    )
    return program


def test_vectors_of_every_level_agree(tmp_path: Path) -> None:
    names = [kernel().mst_level_name(level).decode() for level in levels()]
    found = {
        level: run(vectors(tmp_path, level, COMPILER, compilers.Compiler(()).flags(flags)))
        for level, flags in [("scalar", ""), *((name, name) for name in names)]
    }
    assert len(found) > 1
    assert len(set(found.values())) == 1, found


@needs_arm
def test_vectors_of_arm_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(vectors(tmp_path, "scalar", COMPILER, compilers.Compiler(()).flags("")))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    for level, flags in (("scalar", ""), ("neon", "neon")):
        program = vectors(tmp_path, level, CROSS, compilers.Compiler(()).flags(flags))
        assert run(QEMU, program) == expected, level


def products(folder: Path, level: str, compiler: str, flags: list[str]) -> str:
    """What products of one level with matrices of every type are."""
    program = folder / f"products-{level}-{Path(compiler).name}"
    names = [f"-DLEVEL={level}", f"-DLEVEL_{level.upper()}"]
    files: list[str | Path] = [
        NATIVE / "products_digest.cpp",
        *(build.SOURCES / f"{n}.cpp" for n in PACKING),
    ]
    link = ["-static"] if compiler == CROSS else []
    how = [*build.FLAGS, "-O1", *flags, *names, *link, str(INCLUDE)]
    run(compiler, *how, *files, "-o", program)
    return run(*(QEMU, program) if compiler == CROSS else (program,))


@needs_arm
@pytest.mark.slow
def test_products_of_arm_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = products(tmp_path, "scalar", COMPILER, compilers.Compiler(()).flags(""))
    assert len(expected.splitlines()) > 10
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    for level in ("neon", "i8mm"):
        flags = compilers.Compiler(()).flags(level)
        assert products(tmp_path, level, CROSS, flags) == expected, level


def stepping(folder: Path) -> str:
    """What the program prints that steps tiny models, on this CPU."""
    library = build.library(default_cache_dir(), lambda phase, fraction: None)
    program = folder / "step"
    run(
        *(COMPILER, "-std=c++17", "-O1", INCLUDE, NATIVE / "step_digest.cpp", library),
        *(f"-Wl,-rpath,{library.parent}", "-o", program),
    )
    return run(program)


def test_whole_models_agree_on_every_level_in_any_cut_with_any_threads(tmp_path: Path) -> None:
    digests = [line.split()[-1] for line in stepping(tmp_path).splitlines()]
    assert len(digests) == len(set(digests)) == 8


@needs_arm
@pytest.mark.slow
@pytest.mark.skipif(
    not (build.SOURCES / "lanes_neon.hpp").exists(), reason="the products have no NEON form"
)
def test_whole_models_agree_on_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stepping(tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    flags = compilers.Compiler(()).flags
    files = [*build.sources(compilers.CompileTarget.here()), (NATIVE / "step_digest.cpp", "")]

    def compile_one(entry: tuple[Path, str]) -> Path:
        path, level = entry
        made = tmp_path / f"{path.stem}.o"
        run(CROSS, *build.FLAGS, *flags(level), INCLUDE, "-c", path, "-o", made)
        return made

    with ThreadPoolExecutor(2) as executor:
        objects = list(executor.map(compile_one, files))
    run(CROSS, "-static", "-pthread", *objects, "-o", tmp_path / "step-arm")
    assert run(QEMU, tmp_path / "step-arm") == expected


def test_pages_that_were_small_for_a_start_become_large_and_keep_what_they_hold(
    tmp_path: Path,
) -> None:
    program = tmp_path / "memory"
    files = (NATIVE / "memory_pages.cpp", build.SOURCES / "memory.cpp")
    run(COMPILER, "-std=c++17", "-O1", "-pthread", INCLUDE, *files, "-o", program)
    small, left, none, content = run(program).split()
    # Of some 43 pages 16 were tried before they were judged.
    assert 20 < int(small) < 30
    assert (int(left), none, content) == (int(small) - 3, "0", "same")

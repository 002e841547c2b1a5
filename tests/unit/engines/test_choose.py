"""`--engine auto`: by what the machine has, and why in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from maestrale.engines.choose import choose_engine
from maestrale.models.gpus import Gpu, nvidia_gpus

LISTED = "NVIDIA RTX A5000, 24564, 24211, 8.6\\nNVIDIA H100 80GB HBM3, 81559, 80900, 9.0\\n"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose nvidia-smi prints what the fixture's file says; no other program."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{LISTED}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return program


def has_vllm(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    found = importlib.util.find_spec("json") if there else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)


def test_gpus_are_read_from_the_driver(driver: Path) -> None:
    gib = 1 << 20
    assert nvidia_gpus() == (
        Gpu("RTX A5000", 24564 * gib, (8, 6), 24211 * gib),
        Gpu("H100 80GB HBM3", 81559 * gib, (9, 0), 80900 * gib),
    )


@pytest.mark.parametrize("output", ["exit 9", "echo No devices were found", "printf 'a, b, c, d'"])
def test_a_driver_that_fails_is_no_gpu(driver: Path, output: str) -> None:
    driver.write_text(f"#!/bin/sh\n{output}\n")
    assert nvidia_gpus() == ()


def test_a_gpu_with_vllm(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_vllm(monkeypatch, True)
    choice = choose_engine("auto", "org/model")
    assert (choice.name, choice.line) == ("vllm", "Engine: vllm (RTX A5000 and vLLM are here).")


def test_a_gpu_without_vllm_says_what_is_missing(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_vllm(monkeypatch, False)
    choice = choose_engine("auto", "org/model")
    assert choice.name == "cpu"
    assert "RTX A5000 here needs vLLM, which is not installed" in choice.why


def test_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    has_vllm(monkeypatch, True)
    assert choose_engine("auto", "org/model").line == (
        "Engine: cpu (no NVIDIA GPU is here, so the CPU)."
    )


def test_files_of_the_cpus_kind_go_to_the_cpu(
    driver: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    has_vllm(monkeypatch, True)
    assert choose_engine("auto", "model.Q4_0.gguf").name == "cpu"
    (tmp_path / "maestrale.json").touch()
    assert choose_engine("auto", str(tmp_path)).name == "cpu"
    assert choose_engine("scripted", "org/model").name == "scripted"

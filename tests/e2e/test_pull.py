"""`maestrale pull`, and `serve` that fetches: whole processes against a hub on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import clean_environment, serving
from stand_in_hub import COMMIT, GOOD_TOKEN, Repo, StandInHub, sha256, stand_in_hub
from tiny_mistral import write_tiny_mistral

pytestmark = pytest.mark.slow
WEIGHTS = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_mistral(tmp_path_factory.mktemp("tiny") / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(tiny: bytes) -> Iterator[StandInHub]:
    repos = {
        "org__model": Repo({"config.json": b"{}", "model.safetensors": WEIGHTS}, gated=True),
        "org__tiny-GGUF": Repo({"README.md": b"x", "tiny-Q4_0.gguf": tiny}),
        # Where the catalogue gets Mistral-7B-Instruct-v0.1 for the CPU from.
        "TheBloke__Mistral-7B-Instruct-v0.1-GGUF": Repo(
            {"m.Q4_K_M.gguf": tiny, "m.Q8_0.gguf": b""}
        ),
    }
    with stand_in_hub(**repos) as running:
        yield running


def environment(hub: StandInHub, home: Path, **more: str) -> dict[str, str]:
    inherited = clean_environment()
    for name in [name for name in inherited if name.startswith(("HF_", "HUGGING"))]:
        del inherited[name]
    return {**inherited, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), **more}


def run_pull(
    hub: StandInHub, home: Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maestrale", "pull", *arguments],
        env=environment(hub, home, **more),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_progress_and_result_are_shown(hub: StandInHub, tmp_path: Path) -> None:
    done = run_pull(hub, tmp_path, "org/model", "--engine", "vllm", HF_TOKEN=GOOD_TOKEN)
    assert done.returncode == 0, done.stderr
    assert "Engine: vllm (as --engine says)." in done.stderr
    assert "Downloading org/model (2 files): 3.0 MB of 3.0 MB, " in done.stderr
    summary, folder = done.stdout.splitlines()
    assert summary == f"org/model ({COMMIT[:12]}): 2 files, 3.0 MB; 3.0 MB fetched."
    assert (Path(folder) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_refusal_is_one_message_and_code_1(hub: StandInHub, tmp_path: Path) -> None:
    begun = time.monotonic()
    done = run_pull(hub, tmp_path, "org/model", "--engine", "vllm")
    assert done.returncode == 1
    assert time.monotonic() - begun < 30  # most of it to start Python on a busy machine
    assert done.stderr.splitlines()[-1].startswith("maestrale: org/model is gated")
    assert "Traceback" not in done.stderr


def test_a_killed_download_goes_on_where_it_was(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.chunk_pause = 0.1
    arguments = [sys.executable, "-m", "maestrale", "pull", "org/model", "--engine", "vllm"]
    process = subprocess.Popen(
        arguments,
        env=environment(hub, tmp_path, HF_TOKEN=GOOD_TOKEN),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / "hub" / "models--org--model" / "blobs" / f"{sha256(WEIGHTS)}.incomplete"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if partial.is_file() and partial.stat().st_size > 500_000:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = partial.stat().st_size
    assert 500_000 < kept < len(WEIGHTS)
    hub.faults.chunk_pause = 0.0
    done = run_pull(hub, tmp_path, "org/model", "--engine", "vllm", HF_TOKEN=GOOD_TOKEN)
    assert done.returncode == 0, done.stderr
    asked = hub.large_transfers()[-1]["range"]
    assert asked == f"bytes={kept}-"
    assert Path(done.stdout.splitlines()[1], "model.safetensors").read_bytes() == WEIGHTS


def test_what_comes_along_needs_no_hub(hub: StandInHub, tmp_path: Path) -> None:
    done = run_pull(hub, tmp_path, "smollm2-135m-instruct", "--engine", "cpu")
    assert (done.returncode, hub.requests) == (0, [])
    assert "comes with maestrale" in done.stdout


@pytest.mark.model
def test_serve_fetches_and_then_needs_no_hub(hub: StandInHub, tmp_path: Path) -> None:
    import httpx

    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    name = "mistralai/Mistral-7B-Instruct-v0.1"
    for start in ("first", "second"):
        with serving(name, cache_dir=tmp_path / "cache", environment=variables) as server:
            models = httpx.get(f"{server.url}/v1/models", timeout=30).json()
            assert models["data"][0]["id"] == name
            if start == "first":
                assert "Downloading TheBloke/Mistral-7B-Instruct-v0.1-GGUF" in server.log()
                assert "Engine: cpu (" in server.log()
        if start == "first":
            asked = len(hub.requests)
    assert len(hub.requests) == asked
    assert hub.sent > 0

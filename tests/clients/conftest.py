"""The servers that the clients talk to, and where they find it.

These tests run in the clients' own environment: `scripts/test clients` makes it. The servers run
in that of users, whose Python SERVER_PYTHON names.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from script import MODEL, SAID, SECRET, replies
from serving import ROOT, Server, serving

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # some ask the hub for a tokenizer of Mistral's

HERMES = ROOT / "tests" / "templates" / "hermes.jinja"
NPM = ROOT / "tests" / "clients" / "npm" / "node_modules"


@pytest.fixture(scope="session")
def server_python() -> str:
    python = os.environ.get("SERVER_PYTHON")
    if python is None:
        pytest.exit("SERVER_PYTHON names no environment of the server: run scripts/test clients")
    return python


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file that agents are asked to read."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "note.txt").write_text(f"{SECRET}\n")
    return folder


@pytest.fixture(scope="session")
def scripted(
    server_python: str, workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose engine says what script.py tells it to, and calls tools as Hermes' do."""
    options = {
        "text": SAID,
        "tokens_per_second": "100",
        "replies": json.dumps(replies(str(workspace / "note.txt"))),
    }
    flags = ("--chat-template", str(HERMES), "--max-model-len", "131072")
    folder = tmp_path_factory.mktemp("scripted")
    with scripted_server(*flags, options=options, folder=folder, python=server_python) as running:
        yield running


@pytest.fixture(scope="session")
def embedder(server_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for embeddings: vectors that a text alone decides, and that mean nothing."""
    folder = tmp_path_factory.mktemp("embedder")
    with scripted_server("--task", "embed", folder=folder, python=server_python) as running:
        yield running


@pytest.fixture(scope="session")
def reranker(server_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that ranks, by scores that mean nothing."""
    folder = tmp_path_factory.mktemp("reranker")
    with scripted_server("--task", "rerank", folder=folder, python=server_python) as running:
        yield running


@contextlib.contextmanager
def scripted_server(
    *flags: str, folder: Path, python: str, options: dict[str, str] | None = None
) -> Iterator[Server]:
    """A server with the scripted engine, which is told these options."""
    with serving(
        *("--engine", "scripted", "--served-model-name", MODEL, *flags),
        cache_dir=folder,
        module="scripted_server",
        environment={
            "SCRIPT": json.dumps(options or {}),
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests' / 'support'}",
        },
        python=python,
    ) as running:
        yield running


@pytest.fixture(scope="session")
def bundled(server_python: str) -> Iterator[Server]:
    """A server with the bundled model."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "maestrale-tests" / "clients"
    with serving("--served-model-name", MODEL, cache_dir=folder, python=server_python) as running:
        yield running


@pytest.fixture(scope="session")
def npm() -> Path:
    """The folder of the clients on npm, or the test is skipped."""
    if shutil.which("node") is None or not (NPM / "ai").exists():
        pytest.skip("the clients on npm are not installed: scripts/test clients does it")
    return NPM

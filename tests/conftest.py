"""Fixtures for all tests: the prepared bundled model, and a server that runs it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from maestrale.config.paths import default_cache_dir
from maestrale.config.settings import BUNDLED_MODEL
from serving import ROOT, Server, serving

if TYPE_CHECKING:
    from ray_cluster import RayCluster

# Started in the background, this process ignores Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

A_DAY = 86_400.0
collect_ignore = ["clients"]  # an environment of their own has what they need


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """A cache that outlives the run, so that the model is prepared once.

    Its name changes with the code that prepares; those not used for a day are removed.
    """
    sources = sorted((ROOT / "src/maestrale/models").glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    caches = default_cache_dir().with_name("maestrale-tests")
    folder = caches / digest[:12]
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    for other in caches.iterdir():
        if other.stat().st_mtime < time.time() - A_DAY:
            shutil.rmtree(other, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def prepared_model(cache_dir: Path) -> Path:
    """The folder of the bundled model, prepared."""
    from maestrale.models.resolve import prepare

    return prepare(BUNDLED_MODEL, cache_dir, lambda message, fraction: None)


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as the hub has it: a folder with safetensors (float32, 540 MB)."""
    from hf_folder import write_hf_folder
    from maestrale.models.catalog import find_model, packaged_weights

    known = find_model(BUNDLED_MODEL)
    weights = packaged_weights(known) if known else None
    assert weights is not None
    return write_hf_folder(weights, tmp_path_factory.mktemp("hf") / "SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def hf_model(cache_dir: Path, hf_folder: Path) -> Path:
    """The same, prepared for vLLM."""
    from maestrale.models.resolve import prepare

    return prepare(str(hf_folder), cache_dir, lambda message, fraction: None, engine="vllm")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """A Ray cluster, shared by all tests of the session."""
    from ray_cluster import RayCluster

    with RayCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def server(cache_dir: Path, prepared_model: Path) -> Iterator[Server]:
    """A server with the bundled model and no flags, shared by all tests of the session."""
    with serving(cache_dir=cache_dir) as running:
        yield running


def pytest_collection_finish(session: pytest.Session) -> None:
    """Ray reads whether it asks for tokens when it is imported: `ray_cluster` says so before."""
    if "ray" in sys.modules:
        raise pytest.UsageError("A test module imports Ray. Import it within the tests.")

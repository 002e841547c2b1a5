"""What `serve` takes of memory and disk from its start on, at sizes that models have."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from maestrale.engines.cpu.kernel.build import library
from maestrale.engines.cpu.memory import weight_bytes
from maestrale.engines.cpu.model_files import spec_of
from memory_group import memory_group
from serving import Server, free_port, serving
from tiny_mistral import LLAMA_1B, MISTRAL_7B, write_mistral

MIB, GIB = 1 << 20, 1 << 30
CACHE = 64 * MIB  # of the KV cache, where it is given
PROCESSES = 400 * MIB
WRITTEN = 32 * MIB  # tokenizer, vocabulary, Python's own files; the model has hundreds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
large = pytest.mark.skipif(
    not os.environ.get("LARGE_MODELS"), reason="on demand: LARGE_MODELS=1, 4 GB of disk"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mistral(tmp_path_factory.mktemp("1b") / "m.gguf", LLAMA_1B)


@pytest.fixture(scope="module")
def mistral_7b(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = write_mistral(tmp_path_factory.mktemp("7b") / "m.gguf", MISTRAL_7B)
    yield path
    path.unlink()


def bound(model: Path, cache: int) -> int:
    """The most memory that serving it may take, all processes together."""
    return int(1.15 * (weight_bytes(spec_of(model)) + cache)) + PROCESSES


@pytest.fixture
def fresh_cache(cache_dir: Path, tmp_path: Path) -> Path:
    """A cache that knows no model, but has the kernel."""
    library(cache_dir, lambda phase, fraction: None)
    folder = tmp_path / "cache"
    folder.mkdir()
    if (cache_dir / "kernel").is_dir():
        (folder / "kernel").symlink_to(cache_dir / "kernel")
    return folder


def answer(server: Server) -> Mapping[str, Any]:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    given = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
    assert given.status_code == 200, given.text
    usage: Mapping[str, Any] = given.json()["usage"]
    return usage


class Watched:
    """The most memory that a server's processes took at a time, and the bytes that they wrote."""

    def __init__(self, port: int) -> None:
        self.most = 0
        self.written: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(port,))
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self, port: int) -> None:
        while not self._over.wait(0.05):
            taken = 0
            for pid in self._pids(port):
                with contextlib.suppress(OSError):
                    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                        if line.startswith("Pss:"):
                            taken += int(line.split()[1]) * 1024
                    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
                        if line.startswith("write_bytes:"):
                            self.written[pid] = int(line.split()[1])
            self.most = max(self.most, taken)

    def _pids(self, port: int) -> list[int]:
        """The server and what it started."""
        parents, found = {}, []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                pid = int(entry.name)
                if f"\0--port\0{port}\0".encode() in (entry / "cmdline").read_bytes():
                    found.append(pid)
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[pid] = int(stat[1])
        return found + [pid for pid, parent in parents.items() if parent in found]


@contextlib.contextmanager
def watched(model: Path, *flags: str, cache_dir: Path) -> Iterator[tuple[Server, Watched]]:
    port = free_port()
    watch = Watched(port)
    try:
        with serving(
            "--model", str(model), *flags, cache_dir=cache_dir, port=port, timeout=600
        ) as server:
            yield server, watch
    finally:
        watch.end()


def check_memory_and_disk(model: Path, cache_dir: Path) -> None:
    for _ in ("first", "again"):
        flags = ("--kv-cache-memory", str(CACHE))
        with watched(model, *flags, cache_dir=cache_dir) as (server, watch):
            assert answer(server)["completion_tokens"] > 0
        assert weight_bytes(spec_of(model)) < watch.most <= bound(model, CACHE)
        assert watch.written
        assert sum(watch.written.values()) < WRITTEN
    kept = sum(file.stat().st_size for file in cache_dir.rglob("*") if file.is_file())
    kernel = sum(file.stat().st_size for file in (cache_dir / "kernel").glob("*"))
    assert kept - kernel < WRITTEN


def check_within(model: Path, cache_dir: Path, limit: int, *flags: str) -> int:
    """Serve it in a cgroup; returns the context that is served."""
    with (
        memory_group(limit) as within,
        serving(
            "--model", str(model), *flags, cache_dir=cache_dir, within=within, timeout=600
        ) as server,
    ):
        assert answer(server)["completion_tokens"] > 0
        model_card = httpx.get(f"{server.url}/v1/models").json()["data"][0]
        length: int = model_card["max_model_len"]
        return length


def test_memory_is_bounded_and_nothing_of_the_models_size_is_written(
    small: Path, fresh_cache: Path
) -> None:
    check_memory_and_disk(small, fresh_cache)


def test_no_more_is_needed_than_the_bound_with_the_page_cache(
    small: Path, fresh_cache: Path
) -> None:
    limit = bound(small, CACHE)
    check_within(small, fresh_cache, limit, "--kv-cache-memory", str(CACHE))


@large
def test_a_7b_is_bounded_as_well(mistral_7b: Path, fresh_cache: Path) -> None:
    check_memory_and_disk(mistral_7b, fresh_cache)


@large
def test_a_7b_starts_in_8_gib_with_its_whole_context(mistral_7b: Path, fresh_cache: Path) -> None:
    assert check_within(mistral_7b, fresh_cache, 8 * GIB) == MISTRAL_7B.context

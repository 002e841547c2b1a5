"""Models on vLLM beside one of the CPU engine in one server, on vLLM's build for CPUs.

Run by scripts/test-vllm; left out where vLLM is not installed. A start takes minutes, so one
server is asked everything: a chat model on each engine, and an embedding model.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from maestrale.engines.choose import has_vllm
from maestrale.engines.cpu.model_files import open_model
from maestrale.keys import add_key
from numpy_decoder import NumpyDecoder
from serving import ROOT, Server, clean_environment, serving
from tiny_embedder import EOS, write_embedder

pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed"),
    pytest.mark.timeout(2400),
]
LARGE, SMALL, VECTORS = "large", "small", "vectors"
TABLES = """
[serve]
key_file = "{keys}"
enforce_eager = true
dtype = "float32"

[[model]]
name = "small"
source = "smollm2-135m-instruct"
engine = "cpu"
max_model_len = 1024
kv_cache_memory = "64MiB"

[[model]]
name = "large"
source = "{chat}"
engine = "vllm"
max_model_len = 1024
kv_cache_memory = "128MiB"
keep_alive = "-1"

[[model]]
name = "vectors"
source = "{embedder}"
engine = "vllm"
max_model_len = 128
kv_cache_memory = "8MiB"
keep_alive = "-1"
"""
STORY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tell the plot of The Lion King in detail."}],
    "temperature": 0.7,
    "seed": 1337,
    "max_tokens": 60,
}


@dataclass
class Several:
    """The running server, and what its requests are signed with."""

    server: Server
    keys: Path
    embedder: Path
    client: httpx.Client
    operator: dict[str, str]

    def post(self, path: str, model: str, **fields: Any) -> httpx.Response:
        return self.client.post(path, json={"model": model, **fields})

    def chat(self, model: str, **fields: Any) -> str:
        answer = self.post("/v1/chat/completions", model, **STORY, **fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def vectors(self, given: Any, **fields: Any) -> list[Any]:
        answer = self.post("/v1/embeddings", VECTORS, input=given, **fields)
        assert answer.status_code == 200, answer.text
        return [each["embedding"] for each in answer.json()["data"]]

    def states(self) -> dict[str, str]:
        cards = self.client.get("/v1/models").json()["data"]
        return {each["id"]: each["state"] for each in cards}

    def wait(self, **states: str) -> None:
        deadline = time.monotonic() + 900
        while {name: self.states()[name] for name in states} != states:
            assert time.monotonic() < deadline, (self.states(), self.server.log())
            time.sleep(0.2)

    def steer(self, model: str, what: str) -> None:
        answer = self.client.post(f"/v1/models/{model}/{what}", headers=self.operator)
        assert answer.status_code == 202, answer.text

    def deployments(self) -> dict[str, dict[str, Any]]:
        told = self.client.get("/status.json", headers=self.operator).json()["deployments"]
        return {each["id"]: each for each in told}

    def engines(self) -> dict[str, int]:
        """The engine processes by the model that each serves."""
        found = {}
        for line in self.server.log().splitlines():
            for name in (LARGE, SMALL, VECTORS):
                if f"engine of {name} is ready (process " in line:
                    found[name] = int(line.partition("(process ")[2].partition(")")[0])
        return found

    def core(self, engine: int) -> int:
        """vLLM's own process below an engine process."""
        below = [pid for pid in self.server.pids() if _parent(pid) == engine]
        (core,) = [pid for pid in below if "EngineCore" in _comm(pid)]
        return core


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def several(
    hf_folder: Path, prepared_model: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Several]:
    folder = tmp_path_factory.mktemp("several")
    keys = folder / "keys.json"
    user, operator = add_key(keys, "alice"), add_key(keys, "carol", operator=True)
    embedder = write_embedder(folder / "embedder", pooling="mean")
    table = folder / "several.toml"
    table.write_text(TABLES.format(keys=keys, chat=hf_folder, embedder=embedder))
    with (
        serving("--config", str(table), cache_dir=cache_dir, timeout=1800) as server,
        httpx.Client(
            base_url=server.url, headers={"authorization": f"Bearer {user}"}, timeout=600
        ) as client,
    ):
        found = Several(server, keys, embedder, client, {"authorization": f"Bearer {operator}"})
        found.wait(small="ready", large="ready", vectors="ready")
        yield found


def test_both_engines_chat_beside_each_other(several: Several) -> None:
    found: dict[str, str] = {}

    def ask(model: str) -> None:
        found[model] = several.chat(model)

    threads = [threading.Thread(target=ask, args=(model,)) for model in (LARGE, SMALL)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(text.strip() for text in found.values())
    assert several.chat(SMALL) == found[SMALL]
    told = several.deployments()
    engines = {
        name: several.client.get(f"/status.json?model={name}", headers=several.operator).json()[
            "engine"
        ]
        for name in told
    }
    assert [engines[each]["name"] for each in (SMALL, LARGE, VECTORS)] == ["cpu", "vllm", "vllm"]
    assert [engines[each]["deterministic"] for each in (SMALL, LARGE)] == [True, False]


def test_the_memory_that_each_takes_is_told(several: Several) -> None:
    told = {name: each["memory_bytes"] for name, each in several.deployments().items()}
    weights = 540_000_000  # of the float32 model
    assert weights < told[LARGE] < 8 << 30
    assert all(100 << 20 < told[name] < told[LARGE] for name in (VECTORS, SMALL)), told
    command = [sys.executable, "-m", "maestrale", "ps", several.server.url]
    shown = subprocess.run(
        command,
        env=clean_environment(MAESTRALE_API_KEY=several.operator["authorization"].split()[1]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert f"{told[LARGE] >> 20:,} MiB" in lines[LARGE]
    assert [lines[name].split()[1] for name in (LARGE, SMALL, VECTORS)] == ["ready"] * 3


def test_embeddings_come_as_lists_ids_and_base64_and_cut(several: Several) -> None:
    texts = ["A wind from the north.", "x", "The sea, the sea"]
    found = several.vectors(texts)
    decoder = NumpyDecoder(open_model(several.embedder))
    for text, row in zip(texts, found, strict=True):
        ids = [*text.encode(), EOS]
        wanted = decoder.hidden(ids).mean(0)
        assert np.array(row) @ wanted / np.linalg.norm(wanted) > 0.999
        assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)
        for given in (text, ids, [ids]):
            assert several.vectors(given)[0] == pytest.approx(row, abs=1e-3)
    (raw,) = several.vectors(texts[0], encoding_format="base64")
    assert np.frombuffer(base64.b64decode(raw), "<f4") == pytest.approx(found[0], abs=1e-3)
    (short,) = several.vectors(texts[0], dimensions=16)
    cut = np.array(found[0][:16])
    assert short == pytest.approx(cut / np.linalg.norm(cut), abs=1e-3)
    usage = several.post("/v1/embeddings", VECTORS, input=texts).json()["usage"]
    assert usage["prompt_tokens"] == sum(len(text.encode()) + 1 for text in texts)


@pytest.mark.parametrize(
    ("path", "model", "fields", "said"),
    [
        ("/v1/chat/completions", VECTORS, STORY, "served for embeddings"),
        ("/v1/completions", VECTORS, {"prompt": "x"}, "served for embeddings"),
        ("/v1/embeddings", LARGE, {"input": "x"}, "--task embed"),
        ("/v1/rerank", VECTORS, {"query": "x", "documents": ["y"]}, "embed"),
    ],
)
def test_what_a_model_is_not_for_is_refused_by_name(
    several: Several, path: str, model: str, fields: dict[str, Any], said: str
) -> None:
    answer = several.post(path, model, **fields)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_a_killed_engine_of_vllm_is_a_pause_of_its_own_model_alone(several: Several) -> None:
    whole = {model: several.chat(model) for model in (LARGE, SMALL)}
    before = several.engines()
    core = several.core(before[LARGE])
    begun = threading.Event()
    text: list[str] = []

    def stream() -> None:
        body = {"model": LARGE, "stream": True, **STORY}
        with several.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    assert "error" not in chunk, chunk
                    text.extend(each["delta"].get("content") or "" for each in chunk["choices"])
                    if len(text) == 10:
                        begun.set()

    thread = threading.Thread(target=stream)
    thread.start()
    assert begun.wait(600)
    os.kill(core, signal.SIGKILL)
    assert several.chat(SMALL) == whole[SMALL]
    assert several.vectors("meanwhile")
    thread.join(600)
    assert "".join(text) == whole[LARGE]
    after = several.engines()
    assert after[LARGE] != before[LARGE]
    assert {name: after[name] for name in (VECTORS, SMALL)} == {
        name: before[name] for name in (VECTORS, SMALL)
    }


def test_one_is_unloaded_and_loaded_again_when_it_is_asked_for(several: Several) -> None:
    said = several.chat(LARGE)
    engine = several.engines()[LARGE]
    core = several.core(engine)
    several.steer(LARGE, "unload")
    several.wait(large="unloaded", small="ready", vectors="ready")
    ends = time.monotonic() + 60
    while {engine, core} & set(several.server.pids()):  # it lets go of its memory first
        assert time.monotonic() < ends
        time.sleep(0.2)
    assert several.chat(SMALL)
    assert several.chat(LARGE) == said
    several.wait(large="ready")
    several.steer(VECTORS, "unload")
    several.wait(vectors="unloaded")
    several.steer(VECTORS, "load")
    several.wait(vectors="ready")


def test_usage_is_counted_for_each_model(several: Several) -> None:
    command = [sys.executable, "-m", "maestrale", "usage", "--by", "key,model", "--json"]
    told = subprocess.run(
        [*command, "--file", str(several.keys.with_name("usage.db"))],
        env=clean_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = {each["model"]: each for each in json.loads(told) if each["key"] == "alice"}
    assert set(rows) >= {LARGE, SMALL, VECTORS}
    assert rows[LARGE]["completion_tokens"] >= 60
    assert rows[VECTORS]["completion_tokens"] == 0 < rows[VECTORS]["prompt_tokens"]

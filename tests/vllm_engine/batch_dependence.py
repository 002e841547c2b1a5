"""How many requests give other tokens among others than alone, on vLLM's build for CPUs.

PYTHONPATH=src:tests/support .venv-vllm/bin/python FILE PREPARED_MODEL [N]
"""

from __future__ import annotations

import random
import sys

from maestrale.engines.base import EngineConfig, GenerationRequest, Sampling
from running_engine import RunningEngine


def main(model: str, count: int) -> None:
    options = {"dtype": "float32", "enforce_eager": "True"}
    running = RunningEngine(
        EngineConfig(
            engine="vllm",
            model_dir=model,
            max_model_len=1024,
            kv_cache_bytes=256 << 20,
            enable_prefix_caching=False,
            options=options,
        )
    )
    try:
        requests = [request(number, running.info.vocab_size) for number in range(count)]
        alone = [running.run(one)[0].tokens for one in requests]
        again = [running.run(one)[0].tokens for one in requests]
        together = [answer.tokens for answer in running.run(*requests)]
    finally:
        running.stop()
    moved = [one for one, other in zip(alone, together, strict=True) if one != other]
    repeated = sum(one != other for one, other in zip(alone, again, strict=True))
    print(f"{repeated} of {count} differ when run alone twice")
    print(f"{len(moved)} of {count} differ when run together")


def request(number: int, vocabulary: int) -> GenerationRequest:
    """Random prompts at a high temperature, where the least difference in a logit shows."""
    chance = random.Random(number)
    greedy = number % 2 == 0
    return GenerationRequest(
        request_id=str(number),
        prompt=tuple(chance.randrange(100, vocabulary - 10) for _ in range(5 + 7 * number)),
        max_tokens=40,
        seed=number,
        sampling=Sampling(temperature=0.0 if greedy else 1.5),
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 16)

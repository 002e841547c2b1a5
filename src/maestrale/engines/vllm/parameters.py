"""One request as vLLM's sampling parameters. Plain data: vLLM is not imported here."""

from __future__ import annotations

from typing import Any

from maestrale.engines.base import GenerationRequest

FORCED = "maestrale_forced"  # in `extra_args`: the ids that forced.py puts first
_SEED_MASK = (1 << 64) - 1


def sampling_parameters(
    request: GenerationRequest, *, eos_token_ids: tuple[int, ...]
) -> dict[str, Any]:
    """The keyword arguments of vLLM's SamplingParams, without structured outputs.

    vLLM ends a sequence only at ids listed here: its own idea of the end is turned off. A
    constrained sequence may also end at `eos_token_ids`.
    """
    sampling = request.sampling
    stops = dict.fromkeys(request.stop_token_ids)
    if request.constraint is not None:
        stops |= dict.fromkeys(eos_token_ids)
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
        "seed": request.seed & _SEED_MASK,
        "max_tokens": max(1, request.max_tokens),  # of none asked for, the one is thrown away
        "min_tokens": min(request.min_tokens, request.max_tokens),
        "stop_token_ids": list(stops),
        "ignore_eos": True,
        "logprobs": request.logprobs,
        "prompt_logprobs": request.prompt_logprobs,
        "detokenize": False,
        "skip_special_tokens": False,
        "extra_args": {FORCED: list(request.forced)} if request.forced else None,
    }

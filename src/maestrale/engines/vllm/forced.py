"""Forced tokens come first: how an answer goes on after a crash where sampling can't be repeated.

vLLM calls this in the process that holds the model, once for each step. A forced step still
samples, from a row with a single finite logit, so penalties, grammar and the request's random
stream advance as they did the first time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from maestrale.engines.vllm.parameters import FORCED

if TYPE_CHECKING:
    import torch


class ForcedTokens(AdapterLogitsProcessor):  # type: ignore[misc]
    """Reads the ids from `extra_args` of the request's sampling parameters."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        forced = (params.extra_args or {}).get(FORCED)
        if not forced:
            return None

        def force(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            position = len(output_ids)
            if position < len(forced):
                logits.fill_(float("-inf"))
                logits[forced[position]] = 0.0
            return logits

        return force

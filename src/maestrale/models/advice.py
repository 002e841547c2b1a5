"""What to change where a model, or its whole context, doesn't fit."""

from __future__ import annotations

from collections.abc import Mapping

from maestrale.models.fit import Plan


def advice(plan: Plan, plans: Mapping[str, Plan]) -> list[str]:
    """One sentence for each way out; none where the whole context fits."""
    if plan.max_context_tokens >= plan.context:
        return []
    ways = []
    if plan.fits:
        ways.append(
            f"Serve a context of {plan.max_context_tokens:,} tokens: 'serve' does so by itself."
        )
    for name, other in plans.items():
        if other.max_context_tokens > plan.max_context_tokens:
            ways.append(
                f"Weights as {name} (a model quantised so): {other.max_context_tokens:,} tokens."
            )
    if plan.engine == "cpu":
        missing = plan.sequence_bytes(plan.context) - plan.kv_bytes
        unused = -next((term.size for term in plan.terms if term.name == "not used"), 0)
        if unused:
            room = plan.kv_bytes + min(unused, missing)
            ways.append(f"--kv-cache-memory {-(-room // (1 << 20))}MiB, for which there is room.")
        return ways
    if plan.kv_element > 1 and plan.fits:
        ways.append("--kv-cache-dtype fp8: half the KV cache for a token.")
    if not plan.fits:
        return [way for way in ways if way.startswith("Weights")] + [_more_gpus(plan)]
    activations = next(-term.size for term in plan.terms if term.name == "activations")
    if activations > (1 << 30):
        ways.append("A smaller --max-num-batched-tokens: activations take more than 1 GiB.")
    ways.append("More GPUs (--tensor-parallel-size 2), or one with more memory.")
    return ways


def _more_gpus(plan: Plan) -> str:
    """How many GPUs hold the weights, with a tenth of each left for the cache."""
    weights = next(-term.size for term in plan.terms if term.name == "weights")
    room = (sum(term.size for term in plan.terms) + weights) * 0.9
    if room <= 0:
        return "A GPU with more memory: this one can't hold what the engine needs besides."
    needed = next((each for each in (2, 4, 8, 16, 32) if weights / each <= room), None)
    if needed is None:
        return "A GPU with more memory."
    return f"{needed} such GPUs (--tensor-parallel-size {needed}), or one with more memory."

"""The sampling defaults that an operator gives, as with vLLM's --override-generation-config."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

# The same bounds as a request's own fields (api/openai/schemas.py).
BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (1e-6, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (1e-6, 10),
}
WHOLE = ("top_k",)


def write_sampling(value: object) -> str:
    """A table of such defaults, or JSON of it, as the JSON that a setting holds.

    Raises: ValueError that says what is allowed.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise ValueError('a table is needed, as JSON: {"temperature": 0.3}')
    for name, number in value.items():
        _check(name, number)
    return json.dumps(value)


def read_sampling(written: str) -> dict[str, float]:
    """What `write_sampling` wrote."""
    found: dict[str, float] = json.loads(written)
    return found


def _check(name: str, number: Any) -> None:
    if name not in BOUNDS:
        near = difflib.get_close_matches(name, BOUNDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(BOUNDS)}"
        raise ValueError(f"{name[:40]!r} is no default that can be given; {meant}")
    least, most = BOUNDS[name]
    plain = isinstance(number, int | float) and not isinstance(number, bool)
    if not (plain and least <= number <= most):
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}")
    if name in WHOLE and not isinstance(number, int):
        raise ValueError(f"{name} must be a whole number")

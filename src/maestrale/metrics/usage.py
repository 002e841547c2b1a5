"""What keys have used since the server started, by key and model: for `--metrics-by-key`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from maestrale.usage import UsageRow

KEY_LABELS = ("key", "model_name")
PREFIX = "maestrale_key_"
TEXTS = {
    "maestrale_key_requests": "Requests of a key.",
    "maestrale_key_errors": "Requests of a key that got an error.",
    "maestrale_key_prompt_tokens": "Prompt tokens of a key, those found in the cache included.",
    "maestrale_key_cached_tokens": "Prompt tokens of a key that were found in the cache.",
    "maestrale_key_completion_tokens": "Tokens generated for a key.",
    "maestrale_key_seconds": "From first step in the engine to last, of all requests of a key.",
}


class UsageMetrics:
    """Counters of what is charged."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counters = [
            (Counter(name, text, KEY_LABELS, registry=registry), name.removeprefix(PREFIX))
            for name, text in TEXTS.items()
        ]

    def add(self, row: UsageRow) -> None:
        """Count what was used."""
        for counter, name in self._counters:
            counter.labels(row.key, row.model).inc(getattr(row, name))

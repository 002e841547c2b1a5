"""A sequence as the scheduler sees it, and what of it is computed in one step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from maestrale.engines.cpu.kv_cache import BlockDigest


@dataclass(eq=False)
class ScheduledSequence:
    """A sequence as the scheduler sees it: its tokens, and how far the KV cache knows them."""

    tokens: list[int]
    prompt_length: int
    priority: int = 0
    share: str = ""  # whose part of the engine's time it takes
    arrival: int = 0
    prefill_length: int = 0  # tokens there were at this admission; later ones are generated
    computed: int = 0
    cached_tokens: int = 0  # of the prompt, found in the prefix cache before any preemption
    preempted: bool = False
    arrived: float = field(default_factory=time.monotonic)
    waited: float = 0.0  # seconds until the first admission
    blocks: list[int] = field(default_factory=list)
    digests: list[BlockDigest] = field(default_factory=list)
    published: int = 0  # blocks entered in the prefix cache (or taken from it)
    claimed: list[BlockDigest] = field(default_factory=list)
    # Of all its prompt's tokens the logits are wanted; or the hidden rows, where it embeds.
    scoring: bool = False
    scored: int = 0  # tokens of the prompt of which that was computed
    embeds: bool = False  # no logits are wanted: what is behind the final norm is
    stepped: int = 0  # the number of the last step that it had a part in
    # Seconds that choosing its tokens took, those it was expected to, and the choices made, all
    # since they were last settled; and what one choice takes.
    spent: float = 0.0
    charged: float = 0.0
    chosen: int = 0
    choosing: float = 0.0

    def draft(self, most: int, *, free: int, alone: bool) -> list[int]:
        """Up to `most` tokens that follow the last for sure; else `free` likely ones.

        More of these where the sequence is `alone`.
        """
        return []

    @property
    def prefill_left(self) -> int:
        """Tokens still to be computed in chunks; 0 for a sequence that generates."""
        return max(0, self.prefill_length - self.computed)

    @property
    def rank(self) -> tuple[int, int]:
        """Order of service: lower priority values first (as in vLLM), then first come."""
        return (self.priority, self.arrival)


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of a sequence to compute in this step, from its `computed` on.

    After a single one `drafts` may follow: tokens that are guessed.
    """

    sequence: ScheduledSequence
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def wants_logits(self) -> bool:
        """Of the last token, and of each guessed one."""
        return self.sequence.computed + self.count == len(self.sequence.tokens)

    @property
    def wanted_rows(self) -> range:
        """Which of the `count` tokens' results are wanted: the last's, or the prompt's as well."""
        sequence = self.sequence
        end = self.count if self.wants_logits else 0
        if not sequence.scoring:
            return range(max(0, end - 1), end)
        # Each tells how likely the token after it was; the prompt's last, the answer's first.
        end = end or min(self.count, sequence.prompt_length - 1 - sequence.computed)
        begin = max(0, sequence.scored - sequence.computed)
        return range(min(begin, end - 1) if self.wants_logits else begin, end)

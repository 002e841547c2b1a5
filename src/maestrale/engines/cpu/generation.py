"""One request on its way through the engine: how each next token is chosen, and when to end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maestrale.engines import sampling
from maestrale.engines.base import (
    FinishReason,
    GenerationRequest,
    TokenDelta,
    TokenLogprob,
)
from maestrale.engines.constraint import TokenConstraint
from maestrale.engines.cpu.prompt_lookup import PromptLookup
from maestrale.engines.cpu.scoring import Scorer
from maestrale.engines.cpu.sequence import ScheduledSequence
from maestrale.engines.mailbox import Mailbox
from maestrale.models.pooling import Pooling


class Generation(ScheduledSequence):
    """A scheduled sequence with its sampler, its constraint and its reader's mailbox."""

    def __init__(
        self,
        request: GenerationRequest,
        constraint: TokenConstraint | None,
        eos_token_ids: tuple[int, ...],
        lookup: PromptLookup,
        pooling: Pooling = "last",
        scorer: Scorer | None = None,
    ) -> None:
        """`scorer`: of a reranker, whose embedding is a score."""
        super().__init__(
            tokens=list(request.prompt),
            prompt_length=len(request.prompt),
            priority=request.priority,
            share=request.share,
        )
        self.request = request
        self.mailbox = Mailbox()  # touched on the event loop only
        self.embeds = request.embed
        self.scoring = request.prompt_logprobs is not None or (self.embeds and pooling == "mean")
        self._scorer = scorer
        self._sum: NDArray[np.float64] | None = None  # of the hidden rows so far
        self._prompt_logprobs: list[TokenLogprob] = []
        self._constraint = constraint
        self._lookup = lookup
        self._eos = frozenset(eos_token_ids)
        self._stops = frozenset(request.stop_token_ids)
        ends = self._stops | self._eos if constraint else self._stops
        self._sampler = sampling.Sampler(
            request.sampling,
            seed=request.seed,
            prompt=request.prompt,
            min_tokens=request.min_tokens,
            stop_token_ids=sorted(ends),
        )

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    def score(self, rows: NDArray[np.float32]) -> None:
        """Take the logits [tokens, vocab] that the prompt's next tokens were to come from."""
        with self._counted(len(rows)):
            for row in rows:
                self.scored += 1
                token = self.tokens[self.scored]
                top = self.request.prompt_logprobs or 0
                self._prompt_logprobs.append(sampling.logprobs(row, token, top))

    def pool(self, rows: NDArray[np.float32]) -> None:
        """Add hidden rows [tokens, hidden] for the mean: one after the other and in double
        precision, so that the sum is the same in any cut of the prompt.
        """
        with self._counted(0):
            if self._sum is None:
                self._sum = np.zeros(rows.shape[1], np.float64)
            for row in rows:
                self._sum += row
            self.scored += len(rows)

    def embedding(self, row: NDArray[np.float32]) -> TokenDelta:
        """The end of an embedding, or a score, with the last token's hidden row [hidden]."""
        pooled = row
        if self._scorer is not None:
            with self._counted(0):
                pooled = np.array([self._scorer(row)], np.float32)
        elif self.scoring:
            self.pool(row[np.newaxis])
            assert self._sum is not None
            pooled = (self._sum / self.prompt_length).astype(np.float32)
        return TokenDelta(
            (),
            "stop",
            cached_tokens=self.cached_tokens,
            waited=self.waited,
            embedding=pooled.astype("<f4").tobytes(),
        )

    def advance(self, logits: NDArray[np.float32]) -> TokenDelta:
        """Choose the next token from `logits` [vocab] and append it.

        Raises: ConstraintError when the constraint leads nowhere, or forbids a forced token.
        """
        with self._counted(1):
            return self._advance(logits)

    def _advance(self, logits: NDArray[np.float32]) -> TokenDelta:
        position = self.generated
        if not self.request.max_tokens:  # only the prompt is asked about
            return TokenDelta((), "length", **self._of_first())
        forced = self.request.forced
        if position < len(forced):
            token = forced[position]
        else:
            mask = self._constraint.allowed() if self._constraint else None
            token = self._sampler.sample(logits, position, mask)
        reason = self._take(token)
        entries: tuple[TokenLogprob, ...] | None = None
        if self.request.logprobs is not None:
            entries = (sampling.logprobs(logits, token, self.request.logprobs),)
        return TokenDelta(
            token_ids=(token,),
            finish_reason=reason,
            logprobs=entries,
            **(self._of_first() if not position else {}),
        )

    def _of_first(self) -> dict[str, Any]:
        """What the first delta tells of the request."""
        return {
            "cached_tokens": self.cached_tokens,
            "waited": self.waited,
            "prompt_logprobs": tuple(self._prompt_logprobs) if self.scoring else None,
        }

    def draft(self, most: int, *, free: int, alone: bool) -> list[int]:
        """What a replay forces or a grammar foresees; else guesses."""
        most = min(most, self.request.max_tokens - self.generated - 1)
        if most < 1:
            return []
        forced = self.request.forced[self.generated : self.generated + most]
        if forced:
            return list(forced)
        if self._constraint:
            with self._counted(0):
                foreseen = self._constraint.foreseen(most)
            if foreseen:
                return foreseen
        most = most if alone else min(most, free)
        return self._lookup.guess(self.tokens, free, most) if most else []

    def learn(self, offered: int, right: int) -> None:
        """Of `offered` guesses in the last step, so many were right."""
        self._lookup.learn(offered, right)

    @contextlib.contextmanager
    def _counted(self, choices: int) -> Iterator[None]:
        """Count this thread's time for what its key has of the engine."""
        begun = time.thread_time()
        try:
            yield
        finally:
            self.spent += time.thread_time() - begun
            self.chosen += choices

    def _take(self, token: int) -> FinishReason | None:
        self.tokens.append(token)
        self._sampler.observe(token)
        if token in self._stops:
            return "stop"
        if self._constraint is not None:
            if token in self._eos:
                return "stop"
            self._constraint.accept(token)
            if self._constraint.finished:
                return "stop"
        return "length" if self.generated >= self.request.max_tokens else None

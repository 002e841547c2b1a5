"""Continuous batching: which sequences run in the next step, and on how many tokens.

Waiting sequences are let in while there are slots and blocks for them. Then those that
generate go first, one token each; what is left of the step's budget goes to prompts, in chunks.
Where several prompts wait for prefill, the oldest gets half of the budget and the shortest go
next, so neither a long prompt nor a short one waits for ever. Where sequences of several keys run,
each key has an equal part of a step's time (`shares.py`). When the KV cache is full the
youngest sequence is preempted: its blocks are freed and its tokens computed again later (its
random stream goes by position, so its answer is the same).

A token has the same bits alone and in any chunk, so whatever was computed may enter the prefix
cache, answers included.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence as SequenceOf

from maestrale.engines.cpu.kv_cache import BLOCK_SIZE, BlockDigest, BlockManager, extend_digests
from maestrale.engines.cpu.prompt_lookup import MAX_DRAFT, ROWS_TOGETHER
from maestrale.engines.cpu.sequence import Chunk, ScheduledSequence
from maestrale.engines.cpu.shares import Part, Shares, StepCost

PREFILL_SHARE = 16  # tokens of a step's budget that sequences which generate leave to prompts
BESIDE_ANSWERS = 80  # tokens of a step that has sequences which generate, theirs included


def most_running(max_num_seqs: int, max_num_batched_tokens: int) -> int:
    """Sequences that a step has room for: each takes at least one token of its budget."""
    return max(1, min(max_num_seqs, max_num_batched_tokens - PREFILL_SHARE))


class Scheduler:
    """The waiting and the running sequences, and the blocks they hold."""

    def __init__(
        self,
        num_blocks: int,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_caching: bool,
    ) -> None:
        self.blocks = BlockManager(num_blocks)
        self.max_running = most_running(max_num_seqs, max_num_batched_tokens)
        self._budget = max_num_batched_tokens
        self._prefix_caching = prefix_caching
        self.waiting: list[ScheduledSequence] = []  # by rank
        self.running: list[ScheduledSequence] = []  # by rank
        self.cost = StepCost()
        self._shares = Shares(self.cost)
        self._steps = 0
        self._claims: dict[BlockDigest, ScheduledSequence] = {}  # blocks being prefilled, by whom
        self._copies: list[tuple[int, int]] = []
        self._arrivals = 0
        self.preemptions = 0
        self.prefix_queries = 0  # tokens
        self.prefix_hits = 0  # tokens

    def add(self, sequence: ScheduledSequence) -> None:
        """Queue a new sequence, whose `tokens` are its prompt."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        bisect.insort(self.waiting, sequence, key=lambda s: s.rank)

    def remove(self, sequence: ScheduledSequence) -> None:
        """Forget a finished or aborted sequence, and free its blocks."""
        self._shares.settle(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def finish(self, sequence: ScheduledSequence) -> None:
        """Forget a sequence that came to its end, and remember its answer for follow-ups."""
        if self._prefix_caching and sequence.computed % BLOCK_SIZE:
            full, rest = divmod(sequence.computed, BLOCK_SIZE)
            self._publish_partial(sequence, full, rest)
        self.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step; empty only when nothing is waiting or running."""
        self._admit()
        self._steps += 1
        part = self._shares.part(self.running)
        chunks: list[Chunk] = []
        generating = [sequence for sequence in self.running if not sequence.prefill_left]
        for sequence in part.in_turn(generating):
            if sequence not in self.running or not part.room(sequence, 1):
                continue
            if self._make_room(sequence, 1, chunks):
                chunks.append(Chunk(sequence, 1))
                part.spend(sequence, 1)
        most = self._budget - len(chunks)
        if chunks:  # answers are read as they come: a long prompt's chunks hold them up
            most = min(most, max(BESIDE_ANSWERS - len(chunks), PREFILL_SHARE))
        self._schedule_prefills(most, chunks, part)
        self._add_drafts(chunks, part)
        for chunk in chunks:
            chunk.sequence.stepped = self._steps
        return chunks

    def take_copies(self) -> list[tuple[int, int]]:
        """(source, target) of the blocks to be copied, in this order, before the step's chunks."""
        copies, self._copies = self._copies, []
        return copies

    def commit(self, chunks: SequenceOf[Chunk]) -> None:
        """Record that `chunks` were computed, and enter the blocks they filled in the cache."""
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.computed += chunk.count
            if not self._prefix_caching:
                continue
            full = sequence.computed // BLOCK_SIZE
            extend_digests(sequence.digests, sequence.tokens, full)
            for index in range(sequence.published, full):
                digest = sequence.digests[index]
                self.blocks.publish(sequence.blocks[index], digest)
                self._publish_partial(sequence, index, BLOCK_SIZE)
                if self._claims.get(digest) is sequence:
                    del self._claims[digest]
            sequence.published = max(sequence.published, full)
            rest = sequence.computed - full * BLOCK_SIZE
            if sequence.computed == sequence.prefill_length and rest:
                self._publish_partial(sequence, full, rest)

    def _publish_partial(self, sequence: ScheduledSequence, index: int, count: int) -> None:
        start = index * BLOCK_SIZE
        before = sequence.digests[index - 1] if index else None
        tokens = sequence.tokens[start : start + count]
        self.blocks.publish_partial(sequence.blocks[index], before, tokens)

    def _share_partial(self, sequence: ScheduledSequence) -> None:
        """Let a sequence in prefill that comes to a new block copy what another knows of it."""
        index = len(sequence.blocks)
        start = index * BLOCK_SIZE
        if not self._prefix_caching or sequence.scoring or sequence.computed != start:
            return
        extend_digests(sequence.digests, sequence.tokens, index)
        before = sequence.digests[index - 1] if index else None
        # The last token is always computed: its logits give the next one.
        end = min(start + BLOCK_SIZE, sequence.prefill_length - 1)
        source, count = self.blocks.partial(before, sequence.tokens[start : max(start, end)])
        block = self.blocks.allocate() if count else None
        if block is None:
            return
        self._copies.append((source, block))
        sequence.blocks.append(block)
        sequence.computed += count
        if not sequence.preempted:
            sequence.cached_tokens += count
            self.prefix_hits += count

    def _add_drafts(self, chunks: list[Chunk], part: Part) -> None:
        """Let sequences that generate guess ahead, within budget, part and their own blocks."""
        rows = sum(chunk.count for chunk in chunks)
        for index, chunk in enumerate(chunks):
            sequence = chunk.sequence
            if sequence.prefill_left or not chunk.wants_logits:
                continue
            room = len(sequence.blocks) * BLOCK_SIZE - len(sequence.tokens)
            most = part.room(sequence, min(MAX_DRAFT, self._budget - rows, room))
            if most < 1:
                continue
            free = min(most, -rows % ROWS_TOGETHER)
            drafts = sequence.draft(most, free=free, alone=len(chunks) == 1)
            if drafts:
                chunks[index] = Chunk(sequence, chunk.count, tuple(drafts))
                rows += len(drafts)
                part.spend(sequence, len(drafts))

    def _schedule_prefills(self, budget: int, chunks: list[Chunk], part: Part) -> None:
        """Share the budget among running sequences in prefill."""
        prefills = [s for s in self.running if s.prefill_left]
        if not prefills:
            return
        for sequence in prefills:
            self._share_partial(sequence)
        oldest = prefills[0]
        others = sorted(prefills[1:], key=lambda s: (s.prefill_left, s.rank))
        held_back = budget // 2 if others else 0
        shares = dict.fromkeys(prefills, 0)
        left = budget

        def give(sequence: ScheduledSequence, most: int) -> None:
            nonlocal left
            wanted = min(sequence.prefill_left - shares[sequence], most)
            count = part.room(sequence, wanted)
            part.spend(sequence, count)
            shares[sequence] += count
            left -= count

        give(oldest, budget - held_back)
        for sequence in (*others, oldest):
            give(sequence, left)
        for sequence in prefills:
            count = shares[sequence]
            if count > 0 and sequence in self.running and self._make_room(sequence, count, chunks):
                chunks.append(Chunk(sequence, count))

    def _admit(self) -> None:
        """Move waiting sequences to running while slots and blocks last."""
        # Blocks that running sequences still need for the tokens they have.
        outstanding = sum(_blocks_for(len(s.tokens)) - len(s.blocks) for s in self.running)
        for sequence in list(self.waiting):
            if len(self.running) >= self.max_running:
                return
            sequence.prefill_length = len(sequence.tokens)
            # The last token is always computed: its logits give the next one.
            most = sequence.prefill_length - 1
            shares = self._prefix_caching and not sequence.scoring
            full = most // BLOCK_SIZE if shares else 0
            extend_digests(sequence.digests, sequence.tokens, full)
            digests = sequence.digests[:full]
            shared = self.blocks.lookup(digests)
            if len(shared) < full and digests[len(shared)] in self._claims:
                continue  # another sequence is computing this very block: share it when done
            needed = _blocks_for(len(sequence.tokens)) - len(shared)
            taken = needed + self.blocks.unused_among(shared)
            # A sequence alone is always let in: the longest one fits the whole cache.
            if self.running and taken + outstanding > self.blocks.available:
                return
            self._start(sequence, shared, digests)
            outstanding += needed

    def _start(
        self, sequence: ScheduledSequence, shared: list[int], digests: list[BlockDigest]
    ) -> None:
        self.waiting.remove(sequence)
        bisect.insort(self.running, sequence, key=lambda s: s.rank)
        for block in shared:
            self.blocks.share(block)
        sequence.blocks = list(shared)
        sequence.published = len(shared)
        sequence.computed = len(shared) * BLOCK_SIZE
        sequence.claimed = digests[len(shared) :]
        for digest in sequence.claimed:
            self._claims.setdefault(digest, sequence)
        if not sequence.preempted:
            sequence.waited = time.monotonic() - sequence.arrived
            sequence.cached_tokens = min(sequence.computed, sequence.prompt_length)
            if self._prefix_caching and not sequence.scoring:
                self.prefix_queries += sequence.prompt_length
                self.prefix_hits += sequence.cached_tokens

    def _make_room(self, sequence: ScheduledSequence, count: int, chunks: list[Chunk]) -> bool:
        """Blocks for `count` more tokens, preempting younger sequences (at last itself)."""
        needed = _blocks_for(sequence.computed + count)
        while len(sequence.blocks) < needed:
            block = self.blocks.allocate()
            if block is not None:
                sequence.blocks.append(block)
                continue
            victim = self.running[-1]
            self._preempt(victim, chunks)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: ScheduledSequence, chunks: list[Chunk]) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.preempted = True
        self.preemptions += 1
        chunks[:] = [chunk for chunk in chunks if chunk.sequence is not sequence]
        bisect.insort(self.waiting, sequence, key=lambda s: s.rank)

    def _free(self, sequence: ScheduledSequence) -> None:
        self.blocks.release(sequence.blocks)
        for digest in sequence.claimed:
            if self._claims.get(digest) is sequence:
                del self._claims[digest]
        sequence.blocks = []
        sequence.claimed = []
        sequence.computed = 0
        sequence.published = 0


def _blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE)

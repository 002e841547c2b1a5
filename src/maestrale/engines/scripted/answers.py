"""What the scripted engine says to a request, token by token, and the accidents on the way."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from maestrale.engines.base import FinishReason, GenerationRequest, TokenDelta, TokenLogprob
from maestrale.engines.mailbox import Mailbox
from maestrale.errors import EngineDied, EngineError, SettingsError
from maestrale.models.vocabulary import Vocabulary

CLOSERS = frozenset(b'"}],:')
EMBEDDING_SIZE = 48


class Script:
    """What the options say of every answer, and of accidents."""

    def __init__(self, options: dict[str, str]) -> None:
        self._options = options
        self.salt = str(os.getpid()) if options.get("nondeterministic") else ""
        self.length = int(options["length"]) if "length" in options else None
        self.words: tuple[int, ...] = ()
        self._said: tuple[int, ...] | None = None
        self._replies: list[tuple[bytes, tuple[int, ...]]] = []
        self._spelled: tuple[bytes, ...] = ()

    def learn(self, vocabulary: Vocabulary) -> None:
        spelled = list(enumerate(vocabulary.token_bytes))
        if "tokens" in self._options:
            self._said = tuple(json.loads(self._options["tokens"]))
        elif "text" in self._options:
            self._said = tuple(_spell(self._options["text"].encode(), spelled))
        for words, text in json.loads(self._options.get("replies", "[]")):
            self._replies.append((words.encode(), tuple(_spell(text.encode(), spelled))))
        self._spelled = tuple(vocabulary.token_bytes)
        self.words = tuple(i for i, b in spelled if b and b.isascii() and _word(b))

    def answer_to(self, prompt: tuple[int, ...]) -> tuple[int, ...] | None:
        """What it is told to say to this prompt; None: whatever the hash says."""
        if self._replies:
            asked = b"".join(self._spelled[token] for token in prompt)
            for words, answer in self._replies:
                if words in asked:
                    return answer
        return self._said

    def may_start(self) -> None:
        """Raises: EngineError when it shall not start."""
        if "fail_start" in self._options:
            raise EngineError(self._options["fail_start"])
        if Path(self._options.get("fail_start_while", "/")).is_file():
            raise EngineError("The script says not to start now.")

    def accident(self, prompt: tuple[int, ...], generated: int) -> None:
        """Crash, hang or fail, if the script says so for this prompt at this token."""
        target = self._options.get("crash_on_prompt")
        if target is not None and int(target) not in prompt:
            return
        places = {kind: self._options.get(f"{kind}_at_token") for kind in ("crash", "hang", "lose")}
        if target is not None and not any(places.values()):
            places["crash"] = "0"
        for kind, place in places.items():
            if place is not None and int(place) == generated and self.still_to_happen():
                _ACCIDENTS[kind]()

    def still_to_happen(self) -> bool:
        if "marker" not in self._options:
            return True
        marker = Path(self._options["marker"])
        happened = marker.stat().st_size if marker.exists() else 0
        if happened >= int(self._options.get("times", "1")):
            return False
        with marker.open("ab") as file:
            file.write(b".")
        return True


def _crash() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)  # as faulty native code ends; SIGKILL comes from outside


def _hang() -> None:
    while True:
        time.sleep(3600)


def _lose() -> None:
    raise EngineDied("the script said so")


_ACCIDENTS = {"crash": _crash, "hang": _hang, "lose": _lose}


class ScriptedSequence:
    """One request on its way."""

    def __init__(
        self,
        request: GenerationRequest,
        vocabulary: Vocabulary,
        script: Script,
        max_model_len: int,
        *,
        ranks: bool = False,
    ) -> None:
        """`ranks`: what it embeds is a score."""
        self.request = request
        self.mailbox = Mailbox()
        self.generated: list[int] = []
        self.finished = False
        self.arrived = time.monotonic()
        self.waited = 0.0  # seconds until it was let in
        self._vocabulary = vocabulary
        self._script = script
        self._ranks = ranks
        self._limit = min(request.max_tokens, max_model_len - len(request.prompt))
        seed = request.seed if request.sampling.temperature > 0 else 0
        self._key = digest(f"{request.prompt}{seed}{request.sampling.temperature}{script.salt}")
        self._said = script.answer_to(request.prompt)
        self._length = script.length
        if self._length is None:
            self._length = len(self._said) if self._said is not None else 8 + self._draw(-1) % 57
        self._bias = dict(request.sampling.logit_bias)
        self._wanted = max(self._bias, key=self._bias.__getitem__, default=None)
        self._constraint = None
        if request.constraint is not None:
            from maestrale.engines.constraint import compile_constraint

            self._constraint = compile_constraint(request.constraint, vocabulary)

    @property
    def held(self) -> int:
        """Tokens in the pretended KV cache now."""
        return len(self.request.prompt) + len(self.generated)

    @property
    def most_held(self) -> int:
        return len(self.request.prompt) + self._limit

    def advance(self) -> TokenDelta:
        """Choose the next token."""
        position = len(self.generated)
        if self.request.embed:
            return TokenDelta((), "stop", waited=self.waited, embedding=self._embedding())
        if not self.request.max_tokens:
            return TokenDelta((), "length", waited=self.waited, prompt_logprobs=self._of_prompt())
        forced = self.request.forced
        token = forced[position] if position < len(forced) else self._choose(position)
        if self._constraint is not None:
            self._constraint.accept(token)
        self.generated.append(token)
        return TokenDelta(
            (token,),
            self._finished(token),
            self._logprobs(token, position, self.request.logprobs),
            waited=0.0 if position else self.waited,
            prompt_logprobs=None if position else self._of_prompt(),
        )

    def _choose(self, position: int) -> int:
        may_stop = position >= self.request.min_tokens
        stops = self.request.stop_token_ids if may_stop else ()
        if self._constraint is not None:
            return self._choose_allowed(position)
        if stops and position >= (self._length or 0):
            return stops[0]
        if self._wanted is not None and self._bias[self._wanted] >= 100:
            return self._wanted
        if self._said:
            return self._said[position % len(self._said)]
        words = self._script.words
        for attempt in range(64):
            token = words[self._draw(position, attempt) % len(words)]
            banned = not may_stop and token in self.request.stop_token_ids
            if not banned and self._bias.get(token, 0) > -100:
                return token
        return words[self._draw(position) % len(words)]

    def _choose_allowed(self, position: int) -> int:
        """What it is told to say, as far as the grammar allows it.

        Else one of the tokens that it allows; half the time one that closes something.
        """
        assert self._constraint is not None
        allowed = [int(i) for i in self._constraint.allowed().nonzero()[0]]
        said = self._said or ()
        told = position < len(said) and tuple(self.generated) == said[:position]
        if told and said[position] in allowed:
            return said[position]
        spelled = self._vocabulary.token_bytes
        ends = [i for i in allowed if i in self._vocabulary.eos_token_ids]
        if ends and position >= self.request.min_tokens:
            return ends[0]
        plain = [i for i in allowed if spelled[i] and spelled[i].isascii()] or allowed
        closers = [i for i in plain if spelled[i] and spelled[i][-1] in CLOSERS]
        draw = self._draw(position)
        choice = closers if closers and draw % 2 else plain
        return choice[draw // 2 % len(choice)]

    def _finished(self, token: int) -> FinishReason | None:
        if len(self.generated) > self.request.min_tokens or self._constraint is not None:
            if token in self.request.stop_token_ids:
                return "stop"
            if self._constraint is not None and self._constraint.finished:
                return "stop"
        return "length" if len(self.generated) >= self._limit else None

    def _embedding(self) -> bytes:
        """Numbers of either sign that depend on the prompt alone; of a reranker's a score."""
        if self._ranks:
            return struct.pack("<f", self._draw(0, 2000) % 10_001 / 10_000)
        drawn = (self._draw(place, 2000) % 2001 - 1000 for place in range(EMBEDDING_SIZE))
        return struct.pack(f"<{EMBEDDING_SIZE}f", *(number / 1000 for number in drawn))

    def _of_prompt(self) -> tuple[TokenLogprob, ...] | None:
        top = self.request.prompt_logprobs
        if top is None:
            return None
        of_each = (
            self._logprobs(token, -2 - place, top)
            for place, token in enumerate(self.request.prompt[1:])
        )
        return tuple(entry for entries in of_each for entry in entries or ())

    def _logprobs(
        self, token: int, position: int, top: int | None
    ) -> tuple[TokenLogprob, ...] | None:
        if top is None:
            return None
        best = -0.01 - self._draw(position, 1000) % 100 / 100
        others = [i for i in range(top + 1) if i != token]
        ranked = [(token, best), *((i, best - 1 - n) for n, i in enumerate(others))]
        return (TokenLogprob(token, best, tuple(ranked[:top])),)

    def _draw(self, position: int, attempt: int = 0) -> int:
        message = position.to_bytes(8, "big", signed=True) + attempt.to_bytes(2, "big")
        hashed = hashlib.blake2b(message, key=self._key, digest_size=8)
        return int.from_bytes(hashed.digest(), "big")


def digest(text: str) -> bytes:
    """32 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def _word(spelling: bytes) -> bool:
    return all(byte == 0x20 or 0x61 <= byte <= 0x7A for byte in spelling)


def _spell(text: bytes, spelled: Iterable[tuple[int, bytes]]) -> list[int]:
    """`text` as tokens, the longest that fits first."""
    ids: dict[bytes, int] = {}
    for token, spelling in spelled:
        if spelling:
            ids.setdefault(spelling, token)
    longest = max(map(len, ids))
    tokens: list[int] = []
    while text:
        for size in range(min(longest, len(text)), 0, -1):
            if text[:size] in ids:
                tokens.append(ids[text[:size]])
                text = text[size:]
                break
        else:
            raise SettingsError("The scripted text can't be spelled with this vocabulary.")
    return tokens

"""Answers in OpenAI's words, Mistral's and vLLM's fields among them: whole, and as chunks."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec

from maestrale.api.openai.schemas import StreamOptions
from maestrale.chat.answer import Answer, Usage
from maestrale.chat.reader import AnswerFinish, LogprobEntry, Piece
from maestrale.chat.service import ChatService
from maestrale.prompt.messages import ToolCall

LEAST_LOGPROB = -9999.0  # JSON has no minus infinity; OpenAI, too, says this for "never"
DONE = b"data: [DONE]\n\n"
encode = msgspec.json.encode


class Chunks:
    """What every streamed answer has in common: the frame, and where the usage goes.

    `include_usage`: None puts the usage on the chunk that ends the answer (Mistral's way),
    True on a chunk of its own (OpenAI's), False nowhere. With `continuous`, too, every chunk
    has the counts so far (vLLM's).
    """

    object_name: str
    id_prefix: str

    def __init__(
        self,
        service: ChatService,
        answer: Answer,
        model: str,
        stream_options: StreamOptions | None,
    ) -> None:
        self.id = f"{self.id_prefix}-{answer.id}"
        self._service = service
        self._answer = answer
        self._include_usage = stream_options.include_usage if stream_options is not None else None
        self._continuous = bool(
            stream_options is not None
            and stream_options.include_usage
            and stream_options.continuous_usage_stats
        )
        self._model = model

    @cached_property
    def _frame(self) -> dict[str, Any]:
        # Not before the first piece: until then the engine may not be there.
        return {
            "id": self.id,
            "object": self.object_name,
            "created": self._answer.created,
            "model": self._model,
            "system_fingerprint": self._service.info.fingerprint,
        }

    def opening(self) -> bytes:
        return b""

    def closing(self) -> bytes:
        if not self._include_usage:
            return DONE
        chunk = {**self._frame, "choices": [], "usage": usage_body(self._answer.usage)}
        return b"data: " + encode(chunk) + b"\n\n" + DONE

    def failure(self, body: bytes) -> bytes:
        return b"data: " + body + b"\n\n"

    def _prompt_logprobs(self, index: int) -> list[dict[str, Any] | None]:
        """vLLM's list: nothing of the prompt's first token; of each other one the likely tokens
        and itself, by id.
        """
        entries = self._answer.prompt_logprobs.get(index, ())
        listed: list[dict[str, Any] | None] = [None]
        for entry in entries:
            ranked: list[tuple[int, float, int | None]] = [
                (token, value, rank) for rank, (token, value) in enumerate(entry.top, start=1)
            ]
            if entry.token_id not in [token for token, _, _ in ranked]:
                ranked.append((entry.token_id, entry.logprob, None))
            listed.append(
                {
                    str(token): {
                        "logprob": max(value, LEAST_LOGPROB),
                        "rank": rank,
                        "decoded_token": self._service.tokenizer.spell(token)[0],
                    }
                    for token, value, rank in ranked
                }
            )
        return listed

    def _prompt_ids(self, index: int) -> list[int]:
        return list(self._answer.requests[index].prompt)

    def _chunk(self, choice: dict[str, Any], *, is_last: bool, **more: Any) -> bytes:
        chunk: dict[str, Any] = {**self._frame, **more, "choices": [choice]}
        if self._continuous:
            chunk["usage"] = usage_body(self._answer.usage_so_far)
        elif self._include_usage:
            chunk["usage"] = None
        elif self._include_usage is None and is_last:
            chunk["usage"] = usage_body(self._answer.usage)
        return b"data: " + encode(chunk) + b"\n\n"


class ChatSpelling(Chunks):
    """Spells an answer as a chat completion."""

    object_name = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def __init__(
        self,
        service: ChatService,
        answer: Answer,
        model: str,
        stream_options: StreamOptions | None,
        shows_thoughts: bool = True,
        as_chunks: bool = False,
    ) -> None:
        """`shows_thoughts`: they are sent. `as_chunks`: as Mistral's API does, in the content."""
        super().__init__(service, answer, model, stream_options)
        self._shows_thoughts, self._as_chunks = shows_thoughts, as_chunks
        self._tail = b'},"logprobs":null,"finish_reason":null}]'
        self._tail += b',"usage":null}\n\n' if self._include_usage else b"}\n\n"
        self._begun: set[int] = set()
        self._called = [0] * len(answer.requests)  # calls sent of each choice

    @cached_property
    def _heads(self) -> list[bytes]:
        """Nearly every event differs in its text only: the rest is encoded once."""
        head = b"data: " + encode(self._frame)[:-1] + b',"choices":[{"index":'
        return [
            head + str(index).encode() + b',"delta":{"content":'
            for index in range(len(self._answer.requests))
        ]

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        asked = any(request.logprobs is not None for request in self._answer.requests)
        return {
            **self._frame,
            "object": "chat.completion",
            "choices": [
                {
                    "index": piece.index,
                    "message": {
                        "role": "assistant",
                        "content": piece.text or (None if piece.calls else ""),
                        **self._thoughts(piece),
                        "refusal": None,
                        "tool_calls": [_call(call) for call in piece.calls] or None,
                    },
                    "logprobs": self._logprobs(piece.logprobs, of_all=asked),
                    "finish_reason": _finish(piece.finish_reason),
                    **self._ids(piece),
                }
                for piece in pieces
            ],
            "usage": usage_body(self._answer.usage),
            **self._of_prompt(),
        }

    def _ids(self, piece: Piece) -> dict[str, Any]:
        return {"token_ids": list(piece.token_ids)} if self._answer.options.token_ids else {}

    def _thoughts(self, piece: Piece) -> dict[str, Any]:
        """A piece's thoughts, under each name that clients know them by, and nothing if it has
        none; in Mistral's way the content has both.
        """
        thought = piece.reasoning
        if not thought or not self._shows_thoughts:
            return {}
        if not self._as_chunks:
            return {"reasoning_content": thought, "reasoning": thought}
        chunks = [{"type": "thinking", "thinking": [{"type": "text", "text": thought}]}]
        text = [{"type": "text", "text": piece.text}] if piece.text else []
        return {"content": [*chunks, *text]}

    def _of_prompt(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if self._answer.options.prompt_logprobs is not None:
            told["prompt_logprobs"] = self._prompt_logprobs(0)
        if self._answer.options.token_ids:
            told["prompt_token_ids"] = self._prompt_ids(0)
        return told

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        index = piece.index
        plain = piece.finish_reason is None and not (piece.logprobs or piece.calls)
        plain = plain and not (piece.reasoning or piece.token_ids)
        if plain and index in self._begun and not self._continuous:
            return self._heads[index] + encode(piece.text) + self._tail
        delta: dict[str, Any] = {}
        first_of_all: dict[str, Any] = {}
        if index not in self._begun:
            if self._answer.options.token_ids and not self._begun:
                first_of_all = {"prompt_token_ids": self._prompt_ids(0)}
            self._begun.add(index)
            delta["role"] = "assistant"
            delta["content"] = piece.text
        elif piece.text:
            delta["content"] = piece.text
        delta |= self._thoughts(piece)
        if piece.calls:  # each whole: clients disagree on how to join parts
            first = self._called[index]
            self._called[index] += len(piece.calls)
            delta["tool_calls"] = [
                {"index": first + place, **_call(call)} for place, call in enumerate(piece.calls)
            ]
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": _finish(piece.finish_reason),
            **self._ids(piece),
        }
        return self._chunk(choice, is_last=is_last, **first_of_all)

    def _logprobs(
        self, entries: list[LogprobEntry], *, of_all: bool = False
    ) -> dict[str, Any] | None:
        """None where there is nothing to tell; an answer without a token has an empty list."""
        if not entries and not of_all:
            return None
        content = []
        for entry in entries:
            top = [self._token(token_id, logprob) for token_id, logprob in entry.top]
            content.append({**self._token(entry.token_id, entry.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        text, raw = self._service.tokenizer.spell(token_id)
        value = max(logprob or 0.0, LEAST_LOGPROB)
        return {"token": text, "logprob": value, "bytes": list(raw), "token_id": token_id}


class CompletionSpelling(Chunks):
    """Spells an answer as a text completion."""

    object_name = "text_completion"
    id_prefix = "cmpl"

    def __init__(
        self,
        service: ChatService,
        answer: Answer,
        model: str,
        stream_options: StreamOptions | None,
        logprobs: int | None,
        best: int | None,
    ) -> None:
        """`logprobs`: as asked for. `best`: so many choices of each prompt are given."""
        super().__init__(service, answer, model, stream_options)
        self._asked = logprobs is not None
        self._best = best
        self._begun: set[int] = set()

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for piece in self._chosen(pieces):
            choice = self._choice(piece, of_all=True)
            if self._answer.options.prompt_logprobs is not None:
                choice["prompt_logprobs"] = self._prompt_logprobs(piece.index)
            choices.append({**choice, "index": len(choices)})
        return {**self._frame, "choices": choices, "usage": usage_body(self._answer.usage)}

    def _chosen(self, pieces: list[Piece]) -> list[Piece]:
        """Those with the highest log-probability a token, the best of each prompt first."""
        if self._best is None:
            return pieces
        of_each = self._answer.options.n
        chosen = []
        for first in range(0, len(pieces), of_each):
            group = pieces[first : first + of_each]
            group.sort(key=self._likelihood, reverse=True)
            chosen += group[: self._best]
        return chosen

    def _likelihood(self, piece: Piece) -> float:
        # What an echo repeats is the same in all.
        values = [entry.logprob for entry in piece.logprobs if entry.logprob is not None]
        return sum(values) / len(values) if values else 0.0

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        return self._chunk(self._choice(piece), is_last=is_last)

    def _choice(self, piece: Piece, *, of_all: bool = False) -> dict[str, Any]:
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": self._logprobs(piece.logprobs, of_all=of_all),
            "finish_reason": _finish(piece.finish_reason),
            **self._ids(piece),
        }

    def _ids(self, piece: Piece) -> dict[str, Any]:
        """The choice's ids, and once those of its prompt, where they were asked for."""
        if not self._answer.options.token_ids:
            return {}
        told: dict[str, Any] = {"token_ids": list(piece.token_ids)}
        if piece.index not in self._begun:
            self._begun.add(piece.index)
            told["prompt_token_ids"] = self._prompt_ids(piece.index)
        return told

    def _logprobs(
        self, entries: list[LogprobEntry], *, of_all: bool = False
    ) -> dict[str, Any] | None:
        """None where there is nothing to tell; an answer without a token has empty lists."""
        if not self._asked or not (entries or of_all):
            return None
        return {
            "tokens": [self._service.tokenizer.spell(entry.token_id)[0] for entry in entries],
            "token_logprobs": [_shown(entry.logprob) for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": [entry.text_offset for entry in entries],
        }

    def _top(self, entry: LogprobEntry) -> dict[str, float | None] | None:
        """By text, most likely first; the token itself is always among them."""
        if entry.logprob is None:
            return None
        top: dict[str, float | None] = {}
        for token, value in (*entry.top, (entry.token_id, entry.logprob)):
            top.setdefault(self._service.tokenizer.spell(token)[0], _shown(value))
        return top


def usage_body(usage: Usage) -> dict[str, object]:
    """As both SDKs read it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _finish(reason: AnswerFinish | None) -> str | None:
    return "tool_calls" if reason == "calls" else reason


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _shown(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)

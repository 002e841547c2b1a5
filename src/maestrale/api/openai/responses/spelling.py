"""Answers as a Response: its items, and the events in which they come.

Whole or as a stream, the same pieces go through the same `ResponseSpelling`, which puts the items
together; what is whole leaves the events out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from maestrale.api.openai.responses.objects import Body, usage_of
from maestrale.chat.answer import Answer
from maestrale.chat.reader import AnswerFinish, LogprobEntry, Piece
from maestrale.chat.service import ChatService
from maestrale.prompt.messages import ToolCall

LEAST_LOGPROB = -9999.0  # JSON has no minus infinity
encode = msgspec.json.encode


class ItemKind(Struct, frozen=True, kw_only=True):
    """An item that comes as text: how it, its one part and its events are called."""

    prefix: str
    type: str
    part: str
    events: str
    fields: Body


MESSAGE = ItemKind(
    prefix="msg",
    type="message",
    part="output_text",
    events="response.output_text",
    fields={"role": "assistant", "content": []},
)
REASONING = ItemKind(
    prefix="rs",
    type="reasoning",
    part="reasoning_text",
    events="response.reasoning_text",
    fields={"summary": [], "content": []},
)


class ResponseSpelling:
    """Spells one answer. Thoughts are an item, and so is text, until a call comes between, and each
    call.
    """

    def __init__(
        self,
        service: ChatService,
        answer: Answer,
        model: str,
        asked: Body,
        namespaces: Mapping[str, tuple[str, str]],
    ) -> None:
        """`asked`: what the Response repeats of its request. `namespaces`: of functions that are
        in one, what the model calls them → the namespace, and their name there.
        """
        self.id = f"resp_{answer.id}"
        self.status = "in_progress"
        self.output: list[Body] = []
        self._service = service
        self._namespaces = namespaces
        self._answer = answer
        self._number = 0  # of the next event
        self._begun = False
        self._item: Body | None = None  # that is open, and of this kind
        self._kind = MESSAGE
        self._text: list[str] = []
        self._logprobs: list[Body] = []
        self._head = b""  # of a delta of its text
        self._error: Body | None = None
        self._completed: int | None = None
        self._told: Body = {}  # the whole, as it is sent
        self._asked = {
            "id": self.id,
            "object": "response",
            "created_at": answer.created,
            "model": model,
            **asked,
        }

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        for _ in self._events(pieces[0]):
            pass
        self._told = self.response()
        return self._told

    def response(self) -> Body:
        """The Response as it is now."""
        ended = self.status not in ("queued", "in_progress")
        cut = self.status == "incomplete"
        return {
            **self._asked,
            "status": self.status,
            "completed_at": self._completed,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self.output,
            "usage": usage_of(self._answer.usage) if ended else None,
        }

    def not_kept(self) -> None:
        """It was to be kept, and can't be: so its client is told."""
        self._asked["store"] = self._told["store"] = False

    def queued(self) -> bytes:
        """The events of one that waits while nobody waits for it."""
        self.status = "queued"
        return self._created() + self._event("response.queued", response=self.response())

    def opening(self) -> bytes:
        self.status = "in_progress"
        return self._created() + self._event("response.in_progress", response=self.response())

    def _created(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._event("response.created", response=self.response())

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        plain = piece.text and piece.finish_reason is None and not piece.logprobs
        begun = self._item is not None and self._kind is MESSAGE
        if plain and begun and not piece.calls and not piece.reasoning:
            # Nearly every event differs in its text only: the rest is encoded once.
            self._text.append(piece.text)
            number = b',"sequence_number":%d}\n\n' % self._next()
            return self._head + encode(piece.text) + b',"logprobs":[]' + number
        return b"".join(self._events(piece))

    def closing(self) -> bytes:
        # There is no event of a response that was cancelled: it is one that is not whole.
        last = "incomplete" if self.status == "cancelled" else self.status
        return self._event(f"response.{last}", response=self.response())

    def failure(self, body: bytes) -> bytes:
        error = msgspec.json.decode(body)["error"]
        ended = self._created() + self._end_item("incomplete")
        code = "invalid_prompt" if error["type"] == "invalid_request_error" else "server_error"
        self._error = {"code": code, "message": error["message"]}
        self.status = "failed"
        told = {name: error[name] for name in ("code", "message", "param")}
        return ended + self._event("error", **told) + self.closing()

    def cancelled(self) -> bytes:
        """The events of one that its client wants no more of."""
        ended = self._end_item("incomplete")
        self.status = "cancelled"
        return ended + self.closing()

    def _end_item(self, status: str) -> bytes:
        return b"".join(self._close(status))

    # Items

    def _events(self, piece: Piece) -> Iterator[bytes]:
        finish = piece.finish_reason
        if piece.reasoning:
            yield from self._write(REASONING, piece.reasoning, [])
        if piece.text or piece.logprobs:
            logprobs = [self._spell(each) for each in piece.logprobs]
            yield from self._write(MESSAGE, piece.text, logprobs)
        cut = "incomplete" if finish == "length" else "completed"
        for place, call in enumerate(piece.calls):
            yield from self._close("completed")
            last = place == len(piece.calls) - 1
            yield from self._call(call, cut if last else "completed")
        if finish is not None:
            if not self.output and self._item is None:  # clients look for a first item
                yield from self._begin(MESSAGE)
            yield from self._close(cut)
            self._end(finish)

    def _end(self, finish: AnswerFinish) -> None:
        self.status = "incomplete" if finish == "length" else "completed"
        self._completed = int(time.time())

    def _write(self, kind: ItemKind, text: str, logprobs: list[Body]) -> Iterator[bytes]:
        """Text that comes of an item of this kind, which is open, or begins."""
        if self._item is None or self._kind is not kind:
            yield from self._close("completed")
            yield from self._begin(kind)
        self._text.append(text)
        self._logprobs += logprobs
        more = {"logprobs": logprobs} if kind is MESSAGE else {}
        yield self._of_part(f"{kind.events}.delta", delta=text, **more)

    def _begin(self, kind: ItemKind) -> Iterator[bytes]:
        self._kind = kind
        self._item = self._new(kind.prefix, kind.type, **kind.fields)
        yield self._of_item("response.output_item.added", item=self._item)
        yield self._of_part("response.content_part.added", part=self._part())
        name = f"{kind.events}.delta"
        fields = encode({"type": name, **self._place, "content_index": 0})
        self._head = b'event: %b\ndata: %b,"delta":' % (name.encode(), fields[:-1])

    def _close(self, status: str) -> Iterator[bytes]:
        """End the item that is open, if one is."""
        if self._item is None:
            return
        part = self._part()
        done = {name: part[name] for name in ("text", "logprobs") if name in part}
        yield self._of_part(f"{self._kind.events}.done", **done)
        yield self._of_part("response.content_part.done", part=part)
        yield from self._done({**self._item, "status": status, "content": [part]})
        self._item, self._text, self._logprobs = None, [], []

    def _part(self) -> Body:
        """The one part of the item that is open."""
        part: Body = {"type": self._kind.part, "text": "".join(self._text)}
        if self._kind is MESSAGE:
            part |= {"annotations": [], "logprobs": self._logprobs}
        return part

    def _call(self, call: ToolCall, status: str) -> Iterator[bytes]:
        space, name = self._namespaces.get(call.name, (None, call.name))
        item = self._new(
            "fc", "function_call", call_id=call.id, name=name, arguments=call.arguments
        )
        if space is not None:
            item["namespace"] = space
        at, arguments = {"item_id": item["id"], "output_index": len(self.output)}, call.arguments
        yield self._of_item("response.output_item.added", item={**item, "arguments": ""})
        yield self._event("response.function_call_arguments.delta", **at, delta=arguments)
        yield self._event(
            "response.function_call_arguments.done", **at, name=name, arguments=arguments
        )
        yield from self._done({**item, "status": status})

    def _new(self, prefix: str, kind: str, **fields: Any) -> Body:
        """An item that begins; its id follows from the answer's."""
        item_id = f"{prefix}_{self._answer.id}{len(self.output)}"
        return {"id": item_id, "type": kind, "status": "in_progress", **fields}

    def _done(self, item: Body) -> Iterator[bytes]:
        yield self._of_item("response.output_item.done", item=item)
        self.output.append(item)

    # Events

    @property
    def _place(self) -> Body:
        """Where the item is that is open."""
        item_id = self._item["id"] if self._item is not None else ""
        return {"item_id": item_id, "output_index": len(self.output)}

    def _of_item(self, name: str, /, **data: Any) -> bytes:
        return self._event(name, output_index=len(self.output), **data)

    def _of_part(self, name: str, /, **data: Any) -> bytes:
        return self._event(name, **self._place, content_index=0, **data)

    def _event(self, name: str, /, **data: Any) -> bytes:
        body = encode({"type": name, **data, "sequence_number": self._next()})
        return b"event: %b\ndata: %b\n\n" % (name.encode(), body)

    def _next(self) -> int:
        number = self._number
        self._number += 1
        return number

    def _spell(self, entry: LogprobEntry) -> Body:
        top = [self._token(token_id, logprob) for token_id, logprob in entry.top]
        return {**self._token(entry.token_id, entry.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float | None) -> Body:
        text, raw = self._service.tokenizer.spell(token_id)
        return {"token": text, "logprob": max(logprob or 0.0, LEAST_LOGPROB), "bytes": list(raw)}

"""Answers as a Response: its items, and the events in which they come.

Whole or as a stream, the same pieces go through the same `ResponseSpelling`, which puts the items
together; what is whole leaves the events out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec

from maestrale.api.openai.responses.objects import Body, usage_of
from maestrale.chat.answer import Answer
from maestrale.chat.reader import AnswerFinish, LogprobEntry, Piece
from maestrale.chat.service import ChatService
from maestrale.prompt.messages import ToolCall

LEAST_LOGPROB = -9999.0  # JSON has no minus infinity
encode = msgspec.json.encode


class ResponseSpelling:
    """Spells one answer. Text is one message, until a call comes between; each call is an item."""

    def __init__(self, service: ChatService, answer: Answer, model: str, asked: Body) -> None:
        """`asked`: what the Response repeats of its request."""
        self.id = f"resp_{answer.id}"
        self.status = "in_progress"
        self.output: list[Body] = []
        self._service = service
        self._answer = answer
        self._number = 0  # of the next event
        self._begun = False
        self._text: list[str] = []  # of the message that is open
        self._logprobs: list[Body] = []
        self._message: Body | None = None
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
        if plain and self._message is not None and not piece.calls:
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
        told = self._created() + self._event(
            "error", code=error["code"], message=error["message"], param=error["param"]
        )
        self.fail(error)
        return told + self.closing()

    def fail(self, error: Body) -> None:
        """Nothing more comes: because of this error, as clients read it."""
        code = "invalid_prompt" if error["type"] == "invalid_request_error" else "server_error"
        self._error = {"code": code, "message": error["message"]}
        self.status = "failed"
        self._end_items("incomplete")

    def cancel(self) -> None:
        """Nothing more comes, as the client wished."""
        self.status = "cancelled"
        self._end_items("incomplete")

    def _end_items(self, status: str) -> None:
        for _ in self._close_message(status):
            pass

    # Items

    def _events(self, piece: Piece) -> Iterator[bytes]:
        finish = piece.finish_reason
        if piece.text or piece.logprobs:
            yield from self._write(piece.text, [self._spell(each) for each in piece.logprobs])
        cut = "incomplete" if finish == "length" else "completed"
        for place, call in enumerate(piece.calls):
            yield from self._close_message("completed")
            last = place == len(piece.calls) - 1
            yield from self._call(call, cut if last else "completed")
        if finish is not None:
            if not self.output and self._message is None:  # clients look for a first item
                yield from self._open_message()
            yield from self._close_message(cut)
            self._end(finish)

    def _end(self, finish: AnswerFinish) -> None:
        self.status = "incomplete" if finish == "length" else "completed"
        self._completed = int(time.time())

    def _write(self, text: str, logprobs: list[Body]) -> Iterator[bytes]:
        if self._message is None:
            yield from self._open_message()
        self._text.append(text)
        self._logprobs += logprobs
        yield self._of_part("response.output_text.delta", delta=text, logprobs=logprobs)

    def _open_message(self) -> Iterator[bytes]:
        self._message = self._new("msg", "message", role="assistant", content=[])
        yield self._of_item("response.output_item.added", item=self._message)
        yield self._of_part("response.content_part.added", part=_part("", []))
        fields = encode({"type": "response.output_text.delta", **self._place, "content_index": 0})
        self._head = b"event: response.output_text.delta\ndata: " + fields[:-1] + b',"delta":'

    def _close_message(self, status: str) -> Iterator[bytes]:
        if self._message is None:
            return
        text = "".join(self._text)
        part = _part(text, self._logprobs)
        logprobs = self._logprobs
        yield self._of_part("response.output_text.done", text=text, logprobs=logprobs)
        yield self._of_part("response.content_part.done", part=part)
        item = {**self._message, "status": status, "content": [part]}
        yield from self._done(item)
        self._message, self._text, self._logprobs = None, [], []

    def _call(self, call: ToolCall, status: str) -> Iterator[bytes]:
        item = self._new(
            "fc", "function_call", call_id=call.id, name=call.name, arguments=call.arguments
        )
        at, arguments = {"item_id": item["id"], "output_index": len(self.output)}, call.arguments
        yield self._of_item("response.output_item.added", item={**item, "arguments": ""})
        yield self._event("response.function_call_arguments.delta", **at, delta=arguments)
        yield self._event(
            "response.function_call_arguments.done", **at, name=call.name, arguments=arguments
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
        """Where the message is that is open."""
        item_id = self._message["id"] if self._message is not None else ""
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


def _part(text: str, logprobs: list[Body]) -> Body:
    return {"type": "output_text", "annotations": [], "logprobs": logprobs, "text": text}

"""Prompts by the model's own Jinja chat template and its Hugging Face tokenizer.

For ordinary text the ids are those of Hugging Face's `apply_chat_template`; text that looks
like a control token stays text (seal.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from maestrale.errors import InvalidRequest, ModelError
from maestrale.models.fim_tokens import fim_marks
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.decode import spell
from maestrale.prompt.fill_in_the_middle import around_gap
from maestrale.prompt.jinja import (
    RENDER_ERRORS,
    ChatTemplate,
    TemplateReads,
    TemplateRefuses,
    TemplateTooSlow,
)
from maestrale.prompt.messages import (
    MESSAGES,
    ChatMessage,
    EncodedPrompt,
    Tool,
    refuse_if_hopeless,
    too_long,
)
from maestrale.prompt.plain_text import plain_text
from maestrale.prompt.reasoning.base import ReasoningFormat
from maestrale.prompt.reasoning.pick import reasoning_format
from maestrale.prompt.reranking import QWEN3_RERANKER, check_template, filled
from maestrale.prompt.seal import Seal, unused_marks
from maestrale.prompt.tools.base import ToolFormat
from maestrale.prompt.tools.probe import TOOL as PROBE
from maestrale.prompt.tools.probe import in_parts
from maestrale.prompt.turns import TemplateTurns, reshaped, with_end

_SAMPLE_CHARS = 12
"""Characters for each token of the context that are enough to tell a hopelessly long text."""

# Added tokens that aren't flagged special but mark structure: <tool_call>, </think>, [TOOL] ...
_MARKER = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)


class TemplateEncoder:
    """Encodes conversations for one model."""

    def __init__(
        self,
        tokenizer: Mapping[str, Any],
        vocabulary: Vocabulary,
        template: str | None,
        constants: Mapping[str, str],
        text_prefix: tuple[int, ...] = (),
        tool_call_parser: str | None = None,
        *,
        text_suffix: tuple[int, ...] = (),
        tool_template: str | None = None,
        fim_token_ids: Mapping[str, int] | None = None,
        rerank_template: str | None = None,
    ) -> None:
        """`tokenizer` is the document of a `tokenizer.json`, or {"sentencepiece": model,
        "added_tokens": the tokens that are not of its pieces}.

        Plain text is put between `text_prefix` and `text_suffix`. `tool_template` stands in for
        `template` where a request has tools. `tool_call_parser` names the format of tool calls; by
        default the template tells it. `fim_token_ids`: marks for filling in the middle that the
        model states by id. `rerank_template`: a reranker's prompt; None: Qwen3-Reranker's.

        Raises: ModelError when the tokenizer or the template can't be used.
        """
        self.chat_template = template
        self._rerank_template = check_template(rerank_template or QWEN3_RERANKER)
        known = [
            token
            for token in tokenizer.get("added_tokens") or ()
            if token["id"] < len(vocabulary)  # gemma-3-1b has one more than rows of logits
        ]
        self._markers = _markers(known)
        special = [name for name, token in self._markers.items() if token["special"]]
        self._seal = Seal(self._markers)
        self._seal_assistant = Seal(special)
        self._cut = re.compile(_pattern(self._markers)) if self._markers else None
        self.fim_marks = fim_marks(vocabulary.control_ids, fim_token_ids)
        marks = () if self.fim_marks is None else self.fim_marks.ends
        named = (name for name, token in vocabulary.control_ids.items() if token in marks)
        kept = {*self._markers, *named}
        self._plain = plain_text({**tokenizer, "added_tokens": known}, kept)
        self._vocabulary = vocabulary
        self._longest = max(map(len, vocabulary.token_bytes))
        self._prefix, self._suffix = text_prefix, text_suffix
        self._template = self._with_tools = None
        self.tool_format: ToolFormat | None = None
        self.native_tools = False
        self.reasoning: ReasoningFormat | None = None
        self.reads = TemplateReads()
        if template is not None:
            self._template = self._with_tools = self._usable(template, constants, tool_call_parser)
            self.reasoning = reasoning_format(vocabulary, template)
            self.reads = self._template[0].reads
        if tool_template is not None:
            self._with_tools = self._usable(
                tool_template, constants, tool_call_parser, tools=[PROBE]
            )
        if self._with_tools is not None:
            self.tool_format = self._with_tools[1].tool_format
            self.native_tools = self._with_tools[1].native

    def _usable(
        self,
        source: str,
        constants: Mapping[str, str],
        tool_call_parser: str | None,
        tools: list[Tool] | None = None,
    ) -> tuple[ChatTemplate, TemplateTurns]:
        """A template that was tried out. Raises: ModelError."""
        template = ChatTemplate(source, constants)
        self._try_out(template, tools)
        return template, TemplateTurns(template, self._vocabulary, tool_call_parser)

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Tool] | None = None,
        continue_final: bool = False,
        max_tokens: int | None = None,
    ) -> EncodedPrompt:
        """The prompt that asks the model for its next turn.

        `continue_final` leaves the last turn, the assistant's, open for the model to go on.
        `max_tokens` refuses a prompt that can't fit before time is spent on it.
        Raises: InvalidRequest, ContextLengthExceeded.
        """
        usable = self._with_tools if tools else self._template
        if usable is None:
            raise InvalidRequest(
                "This model has no chat template: it continues plain prompts only. For messages "
                "serve it with --chat-template.",
                at=MESSAGES,
            )
        if not messages:
            raise InvalidRequest("messages must not be empty.", at=MESSAGES)
        if continue_final and messages[-1].role != "assistant":
            raise InvalidRequest(
                "Only a last message of the assistant can be continued.", at=MESSAGES
            )
        turns, shown = usable[1].prepared(messages, tools)
        mark, end = unused_marks([msgspec.to_builtins(turns), shown], 2)
        rendered = self._render(usable, turns, shown, continue_final, mark, end)
        text = rendered.replace(mark, "")
        refuse_if_hopeless((text,), self._longest, max_tokens)
        return EncodedPrompt(tuple(self._encode(rendered, mark, max_tokens)), text)

    def encode_text(
        self, text: str, *, add_bos: bool = True, max_tokens: int | None = None
    ) -> tuple[int, ...]:
        """Plain text, in which nothing is a control token.

        Raises: ContextLengthExceeded, InvalidRequest.
        """
        refuse_if_hopeless((text,), self._longest, max_tokens)
        ids = self._encode_plain(text, max_tokens)
        return (*self._prefix, *ids, *self._suffix) if add_bos else tuple(ids)

    def encode_fim(
        self, prefix: str, suffix: str, *, add_bos: bool = True, max_tokens: int | None = None
    ) -> tuple[int, ...]:
        """See `PromptEncoder.encode_fim`."""
        assert self.fim_marks is not None
        refuse_if_hopeless((prefix, suffix), self._longest, max_tokens)
        return around_gap(
            self.fim_marks,
            begin=self._prefix if add_bos else (),
            prefix=self._encode_plain(prefix, max_tokens),
            suffix=self._encode_plain(suffix, max_tokens, inner=True),
        )

    def encode_pair(
        self,
        query: str,
        document: str,
        *,
        max_document_tokens: int | None = None,
        max_tokens: int | None = None,
    ) -> tuple[int, ...]:
        """See `PromptEncoder.encode_pair`."""
        refuse_if_hopeless((query, document), 0, None)  # what isn't Unicode
        if max_document_tokens is not None:
            # What is longer than the context is refused, however long it is.
            most = max_document_tokens if max_tokens is None else max_tokens + 1
            document = self._beginning(document, min(most, max_document_tokens))
        refuse_if_hopeless((query, document), self._longest, max_tokens)
        (mark,) = unused_marks([query, document], 1)
        rendered = filled(
            self._rerank_template,
            {"query": self._seal.apply(query, mark), "document": self._seal.apply(document, mark)},
        )
        return tuple(self._encode(rendered, mark, max_tokens))

    def _beginning(self, text: str, tokens: int) -> str:
        """The text of its first `tokens`; of a character that is cut through, nothing."""
        ids = self._encode_plain(text[: tokens * self._longest], None)[:tokens]
        spelled = b"".join(self._vocabulary.token_bytes[id_] for id_ in ids)
        beginning = spelled.decode(errors="ignore")
        return beginning if text.startswith(beginning) else beginning.removeprefix(" ")

    def decode(self, ids: Sequence[int]) -> str:
        """What these tokens spell, control tokens by their names.

        Raises: InvalidRequest for an id outside the vocabulary.
        """
        return spell(self._vocabulary, ids)

    def _try_out(self, template: ChatTemplate, tools: list[Tool] | None) -> None:
        """Render one question, so that a template that can't work is found at the start."""
        question = {"role": "user", "content": "Hello"}
        try:
            try:
                template.render(messages=[question], tools=tools, add_generation_prompt=True)
            except RENDER_ERRORS:  # it may want a list of parts
                question = in_parts(question)
                template.render(messages=[question], tools=tools, add_generation_prompt=True)
        except TemplateTooSlow as error:
            raise ModelError(
                "The chat template doesn't end: rendering one short question took more than "
                "5 seconds. Give another with --chat-template."
            ) from error
        except TemplateRefuses:
            pass  # it wants another kind of conversation, and says so by itself
        except RENDER_ERRORS as error:
            raise ModelError(f"The chat template can't render a question: {error}") from error

    def _render(
        self,
        usable: tuple[ChatTemplate, TemplateTurns],
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] | None,
        continue_final: bool,
        mark: str,
        end: str,
    ) -> str:
        """The rendered prompt; a conversation that the template refuses is tried reshaped."""
        refusal = ""
        for attempt in _attempts(messages):
            try:
                return self._render_one(usable, attempt, tools, continue_final, mark, end)
            except TemplateTooSlow as error:
                raise InvalidRequest(
                    "The conversation is too long for this model's chat template.",
                    at=MESSAGES,
                ) from error
            except RENDER_ERRORS as error:
                refusal = refusal or str(error).replace(mark, "")
        raise InvalidRequest(
            f"This model's chat template refuses the conversation: {refusal}",
            at=MESSAGES,
        )

    def _render_one(
        self,
        usable: tuple[ChatTemplate, TemplateTurns],
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] | None,
        continue_final: bool,
        mark: str,
        end: str,
    ) -> str:
        template, form = usable
        turns = [
            form.turn(
                message,
                self._seal_assistant if message.role == "assistant" else self._seal,
                mark,
            )
            for message in messages
        ]
        # A space after the end mark tells whether the template trims; then we trim as well.
        if continue_final:
            with_end(turns[-1], end + " ")
        rendered = template.render(
            messages=turns,
            tools=self._seal.apply_to_json(list(tools), mark) if tools else None,
            documents=None,
            add_generation_prompt=not continue_final,
        )
        if not continue_final:
            return rendered
        before, found, after = rendered.rpartition(end)
        if not found:
            raise InvalidRequest(
                "This model's chat template can't continue a message of the assistant.",
                at=MESSAGES,
            )
        return before if after.startswith(" ") else before.rstrip()

    def _encode(self, rendered: str, mark: str, max_tokens: int | None) -> Iterator[int]:
        done = 0
        for match in self._cut.finditer(rendered) if self._cut else ():
            text = rendered[done : match.start()].replace(mark, "")
            yield from self._encode_plain(text, max_tokens, first=done == 0)
            marker = self._markers.get(match[0]) or self._markers[match[0].strip()]
            yield marker["id"]
            done = match.end()
        text = rendered[done:].replace(mark, "")
        yield from self._encode_plain(text, max_tokens, first=done == 0)

    def _encode_plain(
        self, text: str, max_tokens: int | None, *, first: bool = True, inner: bool = False
    ) -> list[int]:
        """`inner`: no space is put before it.

        Raises: ContextLengthExceeded when the first part alone is far too long.
        """
        if max_tokens is not None and len(text) > _SAMPLE_CHARS * max_tokens:
            fewest = len(self._encode_plain(text[: _SAMPLE_CHARS * max_tokens], None))
            # Where it was cut, some tokens may differ; by no means half of them.
            if fewest > 2 * max_tokens:
                raise too_long(fewest, max_tokens)
        if not text:
            return []
        return self._plain.encode_inner(text) if inner else self._plain.encode(text, first=first)


def _attempts(messages: Sequence[ChatMessage]) -> Iterator[list[ChatMessage]]:
    yield list(messages)
    if any(message.reasoning for message in messages):
        messages = [msgspec.structs.replace(message, reasoning="") for message in messages]
        yield list(messages)
    yield from reshaped(messages)


def _markers(added: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The added tokens that only a template may write, by their text."""
    markers = {
        token["content"]: token
        for token in added
        if token["special"] or _MARKER.fullmatch(token["content"])
    }
    short = [name for name in markers if len(name) < 2]
    if short:
        raise ModelError(f"The tokenizer has control tokens of one character ({short}).")
    return markers


def _pattern(markers: Mapping[str, Mapping[str, Any]]) -> str:
    """Matches a whole marker, the longest first, with the blanks that it takes with it."""
    return "|".join(
        (r"\s*" if marker["lstrip"] else "")
        + re.escape(name)
        + (r"\s*" if marker["rstrip"] else "")
        for name, marker in sorted(markers.items(), key=lambda item: -len(item[0]))
    )

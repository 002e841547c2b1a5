"""What is asked for, in no API's words: a conversation or prompts, and how to answer.

Each dialect (api/) decodes its bodies into these. Where something here is at fault, an error names
the place by a `Location` in these words: the fields of `Options`, and `messages`, `prompt`,
`tools` with what is inside them. The dialect knows what its clients call it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from maestrale.engines.base import Constraint, EngineInfo, Sampling
from maestrale.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    Location,
    UnsupportedParameter,
)
from maestrale.prompt.messages import ChatMessage
from maestrale.prompt.tools.base import ToolUse

ANY_OBJECT = Constraint("json_schema", '{"type":"object"}')  # JSON, whatever is in it
MAX_SCHEMA_BYTES = 64 * 1024

PROMPT = Location("prompt")
SUFFIX = Location("suffix")
TOOLS = Location("tools")
INPUT = Location("input")
QUERY = Location("query")
DOCUMENTS = Location("documents")
CONSTRAINT = Location("constraint")
REASONING = Location("reasoning")


class Conversation(Struct, frozen=True, kw_only=True):
    """Messages to be answered.

    `continues`: the last one is the assistant's, and the answer goes on from it.
    """

    messages: tuple[ChatMessage, ...]
    continues: bool = False


class Prompts(Struct, frozen=True):
    """Plain texts, or token ids, to go on from; each has answers of its own.

    With a `suffix` each is a text before a gap and that the text behind it: the answer fills it.
    """

    prompts: tuple[str | Sequence[int], ...]
    suffix: str | None = None


class Inputs(Struct, frozen=True, kw_only=True):
    """Plain texts, or token ids, to make an embedding of each; of its numbers the first
    `dimensions`, None: all.
    """

    inputs: tuple[str | Sequence[int], ...]
    dimensions: int | None = None


class Ranking(Struct, frozen=True, kw_only=True):
    """A query, and documents to score, each by how well it answers it. Of a document the first
    `max_document_tokens` are read; None: all.
    """

    query: str
    documents: tuple[str, ...]
    max_document_tokens: int | None = None


Asked = Conversation | Prompts | Inputs | Ranking


class Reasoning(Struct, frozen=True, kw_only=True):
    """Whether and how much the model shall think before it answers.

    `enabled` None leaves it to the model's chat template. `effort` is a word for the template.
    `budget`: at most so many tokens of thought, which is then ended; None: what `max_tokens`
    leaves. A model that can't think refuses a request that wants it, unless it is `optional`.
    """

    enabled: bool | None = None
    effort: str | None = None
    budget: int | None = None
    optional: bool = False

    @property
    def wanted(self) -> bool:
        """It asks for thoughts."""
        return bool(self.enabled or self.effort or self.budget)


class Options(Struct, frozen=True, kw_only=True):
    """How to answer: what the request says beside its prompt, validated and with defaults.

    `max_tokens` None means what remains of the context; thoughts count. `constraint`, `stop` and
    `tools` are for what comes after the model's thoughts. With `include_stop` the stop string
    that ends an answer is part of it, and with `token_ids` each piece tells its own. With `echo`
    the answer begins with the prompt, and its log-probabilities with those of the prompt's tokens.
    `seed` None means draw one. `template_variables` go to the chat template. `tools` None means
    that none may be called. `key` names who asks: keys take turns.
    """

    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    constraint: Constraint | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    token_ids: bool = False
    reasoning: Reasoning = Reasoning()
    template_variables: tuple[tuple[str, bool | int | str], ...] = ()
    echo: bool = False
    add_special_tokens: bool = True
    tools: ToolUse | None = None
    key: str = "-"


def schema_constraint(raw: bytes, at: Location) -> Constraint:
    """An answer by this JSON schema, within bounds. Raises: InvalidRequest."""
    if len(raw) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(
            f"The schema has {len(raw)} bytes; up to {MAX_SCHEMA_BYTES} are allowed.", at=at
        )
    try:
        schema = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The schema is not valid JSON: {error}", at=at) from error
    if not isinstance(schema, dict):
        raise InvalidRequest("A JSON schema must be an object.", at=at)
    return Constraint("json_schema", raw.decode())


def check_options(options: Options, info: EngineInfo, constrained_by: Location) -> None:
    """What the engine or the vocabulary can't do is refused by name.

    `constrained_by`: what the constraint comes of. Raises: InvalidRequest.
    """
    if options.sampling.logit_bias:
        require(info, "logit_bias", Location("logit_bias"))
        biased = [token_id for token_id, _ in options.sampling.logit_bias]
        check_token_ids(biased, info.vocab_size, Location("logit_bias"))
    if options.logprobs or options.prompt_logprobs is not None:
        require(info, "top_logprobs", Location("logprobs"))
    if options.constraint is not None:
        require(info, options.constraint.kind, constrained_by)
        for given, name in (
            (options.ignore_eos, "ignore_eos"),
            (options.min_tokens > 0, "min_tokens"),
        ):
            if given:
                at = Location(name)
                raise InvalidRequest(
                    *(at, " can't be combined with ", constrained_by),
                    ": a complete document must be able to end.",
                    at=at,
                )


def require(info: EngineInfo, feature: str, at: Location) -> None:
    """Raises: UnsupportedParameter where the engine hasn't this feature."""
    if feature not in info.features:
        raise UnsupportedParameter(at, f" is not supported by the engine '{info.engine}'.", at=at)


def check_token_ids(token_ids: Sequence[int], size: int, at: Location) -> tuple[int, ...]:
    """The ids, all of them in a vocabulary of this size. Raises: InvalidRequest."""
    for token_id in token_ids:
        if not 0 <= token_id < size:
            raise InvalidRequest(
                f"Token id {token_id} is outside the vocabulary: ids are 0 to {size - 1}.", at=at
            )
    return tuple(token_ids)


def room_for_answer(prompt_tokens: int, options: Options, limit: int, at: Location) -> int:
    """How many tokens the answer may have to the prompt, which is `at`, in a context of `limit`.

    Raises: ContextLengthExceeded, InvalidRequest.
    """
    if prompt_tokens == 0:
        raise InvalidRequest("The prompt is empty.", at=at)
    if prompt_tokens > limit:
        raise too_long(limit, at, f"the prompt has {prompt_tokens} tokens")
    room = limit - prompt_tokens
    max_tokens = room if options.max_tokens is None else options.max_tokens
    if max_tokens and not room and options.max_tokens is not None:
        raise too_long(
            *(limit, at, f"the prompt has {prompt_tokens} tokens, which leaves no room for the "),
            *(f"{max_tokens} that ", Location("max_tokens"), " asks for"),
        )
    max_tokens = min(max_tokens, room)
    if options.min_tokens > max_tokens:
        fewest = Location("min_tokens")
        raise InvalidRequest(
            fewest,
            f" ({options.min_tokens}) is more than the answer may have ({max_tokens}).",
            at=fewest,
        )
    return max_tokens


def too_long(limit: int, at: Location, *what: str | Location) -> ContextLengthExceeded:
    """The error for a prompt that a context of `limit` tokens has no room for."""
    return ContextLengthExceeded(
        f"This model's context length is {limit} tokens, but ",
        *what,
        ". Shorten the prompt or ask for fewer tokens.",
        at=at,
    )

"""The Engine protocol: a pure token machine, token ids in, token ids out.

Text, chat templates, roles, tools, stop strings and usage live above (`prompt/`, `chat/`),
so every engine counts and spells the same way. All types here are msgspec structs: the same
objects travel over the private socket between the API process and the engine process.
"""

from __future__ import annotations

import bisect
from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct

CALIBRATION_ID = "calibration"  # the worker's own request, which measures a step at start

FinishReason = Literal["stop", "length"]
EngineState = Literal["starting", "ready", "degraded", "loading", "unloaded", "draining", "dead"]

Feature = Literal[
    "logit_bias",
    "top_logprobs",
    "json_schema",
    "regex",
    "grammar",
    "deterministic",
    "prefix_cache",
    "embed",
]

# What a model is served for: to go on from prompts, to make one vector of each, or one score.
Task = Literal["generate", "embed", "rerank"]
TaskChoice = Literal["auto", "generate", "embed", "rerank"]


class Constraint(Struct, frozen=True):
    """What decoding is constrained to; JSON has no more white space than its layout needs.

    `value` is a JSON schema document (`json_schema`), a regular expression (`regex`) or a
    Lark grammar (`grammar`), as text. A grammar may name control tokens by id, `<[5]>`, which
    are forbidden elsewhere; each of its `schemas`, (rule, JSON schema document), is one more rule,
    and so is each of its `nested` constraints, (rule, constraint). `written` is what llguidance
    reads of all that, once it was vetted: the writing would hold up an engine's steps.
    """

    kind: Literal["json_schema", "regex", "grammar"]
    value: str
    schemas: tuple[tuple[str, str], ...] = ()
    nested: tuple[tuple[str, Constraint], ...] = ()
    written: str = ""


class Sampling(Struct, frozen=True, kw_only=True):
    """How the next token is chosen. `temperature` 0 is greedy; `top_k` 0 is off.

    Penalties follow OpenAI (presence, frequency: subtracted, generated tokens only) and
    vLLM (repetition: divides or multiplies, prompt and generated tokens).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """One sequence to generate: complete and immutable, so submitting it again is a replay.

    With a deterministic engine the tokens depend on this object alone. `seed` is always set
    (the API draws one where the client gave none). A generated id in `stop_token_ids` ends
    the sequence with finish reason "stop"; it is part of the delta's tokens. `logprobs`:
    None is off, 0 gives the chosen token's, k > 0 also the k most likely. `prompt_logprobs`
    asks the same of the prompt's tokens, whose logits are then computed, prefix cache or not;
    with it `max_tokens` may be 0: the prompt is computed, nothing is generated. So it is with
    `embed`, which asks for the prompt's embedding; of an engine that reranks, for its score.
    `share` says for whom it is: an engine that can gives each an equal part of its time. `forced`
    tokens are taken as if sampled, in order, before free generation goes on (they count as
    generated, and advance penalties, constraint and random stream).
    """

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    sampling: Sampling = Sampling()
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    constraint: Constraint | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    embed: bool = False
    priority: int = 0
    share: str = ""
    forced: tuple[int, ...] = ()


class TokenLogprob(Struct, frozen=True):
    """Natural-log probability of the chosen token, and the most likely alternatives.

    Taken from the model's own distribution, before penalties, masks and temperature
    (vLLM's `raw_logprobs`). `top` holds (token id, logprob), most likely first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokenDelta(Struct, frozen=True):
    """Tokens generated since the last delta. The last delta has a `finish_reason`.

    `cached_tokens` counts the prompt tokens taken from the prefix cache, `waited` the seconds
    between the request's arrival in the engine and its first step, and `prompt_logprobs` has what
    was asked for of the prompt's tokens from the second on (the first follows nothing); all are
    meaningful on the first delta with a token. An engine may give deltas without one while it
    reads a long prompt: `prefilled` says how much of it is read. `embedding`: float32,
    little-endian, as the model's pooling gives it, whatever its length; a reranker's is one number,
    the score, from 0 to 1.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    cached_tokens: int = 0
    waited: float = 0.0
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    prefilled: int = 0
    embedding: bytes | None = None


class ReservedGpus(Struct, frozen=True, kw_only=True):
    """GPUs of several nodes that Ray keeps for one engine: the placement group of this id (hex),
    on the cluster at `address`. `bundles`: what each of its bundles holds, by resource.
    """

    address: str
    group: str
    bundles: tuple[dict[str, float], ...]


class EngineConfig(Struct, tag=True, frozen=True, kw_only=True):
    """What a worker needs to build its engine. `model_dir` is a prepared model (models/).

    None for `max_num_seqs`, `max_num_batched_tokens`, `kv_cache_bytes` or `threads`
    leaves it to the engine. `options` are settings that only this engine has,
    by name, as text. `reserved` is given where the engine's GPUs lie on several nodes. `task`:
    what it is for; auto is what the model was made for (`engines/task.py`).
    """

    engine: str
    model_dir: str
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_bytes: int | None = None
    enable_prefix_caching: bool = True
    deterministic: bool = True
    threads: int | None = None
    options: dict[str, str] = {}
    reserved: ReservedGpus | None = None
    task: TaskChoice = "auto"


class EngineInfo(Struct, frozen=True, kw_only=True):
    """What an engine is and can do; fixed from `start()` on.

    `max_model_len` (prompt + answer), `kv_capacity_tokens` and `kv_block_tokens` (what the KV
    cache is handed out in) are in tokens. `fingerprint` names all that the bytes of an answer
    depend on: model, weights, engine version, CPU features, threads, settings. A step computes up
    to `max_num_batched_tokens`, and then takes about `step_seconds`, where the engine knows that
    without a step. `task`: what it was started for. `embedding_size`: numbers of an embedding,
    where it makes some; 1 where it reranks.
    """

    engine: str
    version: str
    fingerprint: str
    max_model_len: int
    vocab_size: int
    kv_capacity_tokens: int
    max_num_seqs: int
    features: frozenset[Feature]
    kv_block_tokens: int = 1
    max_num_batched_tokens: int = 256
    step_seconds: float | None = None
    task: Task = "generate"
    embedding_size: int = 0

    @property
    def context_length(self) -> int:
        """Prompt and answer together, in tokens: the model's limit, or the KV cache's if less."""
        return min(self.max_model_len, self.kv_capacity_tokens)


class Forecast(Struct, frozen=True, kw_only=True):
    """What an engine of `config` will be once it has started, told without starting it.

    `info` lacks the fingerprint and a step's time. `memory`: bytes that it will take, with its
    process.
    """

    config: EngineConfig
    info: EngineInfo
    memory: int


class EngineStats(Struct, frozen=True, kw_only=True):
    """Counters since start, and gauges of this moment. `steps` stands still when idle."""

    steps: int = 0
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0  # 0..1
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    prefix_cache_queries: int = 0  # in tokens
    prefix_cache_hits: int = 0  # in tokens
    # Tokens guessed ahead, and those of them that were right.
    draft_tokens: int = 0
    accepted_tokens: int = 0
    # Steps by their number of tokens (see `StepTokens`), and the tokens of all steps.
    step_tokens: tuple[int, ...] = ()
    step_tokens_sum: int = 0
    # Known to the supervisor alone: engine processes replaced, requests given to another
    # process than the one that began them, replays that gave other tokens, requests refused
    # because they stop the engine, and whether there is an engine now.
    restarts: int = 0
    replayed: int = 0
    mismatched: int = 0
    refused: int = 0
    up: bool = True
    # Not where its model is unloaded until a request asks for it.
    loaded: bool = True


class ReplicaStatus(Struct, frozen=True, kw_only=True):
    """One of the engines behind an engine, as the status page and the metrics show it.

    `state`: joining, up, foreign (another model's), draining or lost. `in_flight`: requests of
    this API process that it has; `stats` counts all of them. `node` is the cluster's id of the
    node, `host` its name.
    """

    name: str
    state: str
    node: str
    host: str
    pid: int
    engine_pid: int
    fingerprint: str
    in_flight: int
    stats: EngineStats


class StepTokens:
    """Counts an engine's steps by how many tokens each computed. One thread adds, any may read."""

    BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # vLLM's buckets

    def __init__(self) -> None:
        self.sum = 0
        self._counts = [0] * (len(self.BOUNDS) + 1)

    def add(self, tokens: int) -> None:
        self._counts[bisect.bisect_left(self.BOUNDS, tokens)] += 1
        self.sum += tokens

    @property
    def counts(self) -> tuple[int, ...]:
        """Steps for each bound that no lower one holds, and at last those above all bounds."""
        return tuple(self._counts)


class EngineHealth(Struct, frozen=True):
    """`state` as `/health` reports it; `detail` is one sentence for a person."""

    state: EngineState
    detail: str = ""


class Engine(Protocol):
    """What every engine is: the CPU engine, vLLM, Ray Serve, the scripted one, the supervisor."""

    async def start(self) -> None:
        """Load the model. The engine is ready when this returns.

        Raises: EngineError, ModelError.
        """

    async def close(self, grace: float = 0.0) -> None:
        """Stop: let running requests finish for up to `grace` seconds, then free everything."""

    async def health(self) -> EngineHealth: ...

    def describe(self) -> EngineInfo:
        """What this engine can do. Valid after `start()`."""

    def stats(self) -> EngineStats: ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """Generate tokens for one request; leaving the iterator aborts it and frees its memory.

        Raises: EngineDied when the engine is lost, EngineError when this request can't be run.
        """


@runtime_checkable
class Unloadable(Protocol):
    """An engine that can be unloaded, and started again, any number of times."""

    async def unload(self) -> None:
        """Free what the model takes; requests in flight end with an error."""


@runtime_checkable
class HasReplicas(Protocol):
    """An engine that stands for several."""

    def replicas(self) -> Sequence[ReplicaStatus]:
        """Those known to this process, in no order."""


def replicas_of(engine: Engine | None) -> list[ReplicaStatus]:
    """By name; none for an engine that is one."""
    if not isinstance(engine, HasReplicas):
        return []
    return sorted(engine.replicas(), key=lambda each: each.name)

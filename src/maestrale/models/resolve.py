"""From what a person calls a model to a folder that is ready to load."""

from __future__ import annotations

from pathlib import Path

from maestrale.errors import ModelError
from maestrale.models.catalog import find_model, packaged_weights
from maestrale.models.convert import Progress, convert_gguf
from maestrale.models.ir_folder import prepare_ir_folder
from maestrale.models.prepared import METADATA_FILE, load_prepared
from maestrale.models.store import build_once, digest_of

WHAT_WORKS = (
    "Works today: smollm2-135m-instruct (comes with maestrale), the path of a .gguf file, or a "
    "folder with an OpenVINO model and its tokenizer."
)
# Pickles run code when they are read, so they are never opened.
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})


def prepare(model: str, cache_dir: Path, progress: Progress) -> Path:
    """The folder of the prepared model that `model` names: a known name, a .gguf file, a folder.

    Converts what needs converting, once, into `cache_dir`; the result is named by the SHA-256
    of its source. `progress(phase, fraction)` is called along the way; the fraction is None
    where it can't be known.

    Raises: ModelError with what is wrong and what would work.
    """
    known = find_model(model)
    if known is not None:
        weights = packaged_weights(known)
        if weights is None:
            raise ModelError(
                f"The weights of {known.name} are not on this machine, and fetching models is "
                f"not possible yet. {WHAT_WORKS}"
            )
        return _prepare_gguf(weights, known.name.rpartition("/")[2].lower(), cache_dir, progress)
    path = Path(model).expanduser()
    try:
        return _prepare_path(path, model, cache_dir, progress)
    except OSError as error:
        where = error.filename or path
        raise ModelError(f"Can't prepare {model}: {where}: {error.strerror}.") from error


def _prepare_path(path: Path, model: str, cache_dir: Path, progress: Progress) -> Path:
    if path.is_dir():
        if (path / METADATA_FILE).is_file():
            load_prepared(path)
            return path
        return prepare_ir_folder(path, cache_dir / "models", progress)
    if not path.exists():
        raise ModelError(
            f"There is no model {model!r}: no known name, no file, no folder. {WHAT_WORKS}"
        )
    if not path.is_file():
        raise ModelError(f"{path} is neither a file nor a folder. {WHAT_WORKS}")
    if path.suffix.lower() in _PICKLES:
        raise ModelError(
            f"{path} is a pickle, which can run code when it is read, so it is not opened. "
            f"{WHAT_WORKS}"
        )
    return _prepare_gguf(path, path.stem, cache_dir, progress)


def _prepare_gguf(path: Path, name: str, cache_dir: Path, progress: Progress) -> Path:
    store = cache_dir / "models"
    try:
        digest = digest_of(path, store, progress)
        return build_once(
            store,
            digest,
            lambda folder: convert_gguf(path, folder, name=name, digest=digest, progress=progress),
            progress,
        )
    except OSError as error:
        raise ModelError(
            f"Can't prepare {path} in {store}: {error.filename or ''} {error.strerror}."
        ) from error

"""From what a person calls a model to a folder that is ready to load."""

from __future__ import annotations

import logging
from pathlib import Path

from maestrale.config.hub import HubSettings, hub_settings
from maestrale.errors import ModelError
from maestrale.models.catalog import KnownModel, find_model, unknown_model
from maestrale.models.file_selection import picked
from maestrale.models.gguf_file import gguf_parts
from maestrale.models.gguf_model import fill_from_gguf
from maestrale.models.hf_folder import prepare_folder
from maestrale.models.hub_names import hub_name
from maestrale.models.local import gguf_in, local_path, refuse_other_files, refuse_revision
from maestrale.models.packaged import weights_of
from maestrale.models.prepared import METADATA_FILE, damage, load_prepared
from maestrale.models.room import full_message, is_full
from maestrale.models.sampling_defaults import NEUTRAL, SamplingDefaults
from maestrale.models.store import Progress, build_once, key_of, stamp_of
from maestrale.text_files import readable

logger = logging.getLogger(__name__)

WHAT_WORKS = (
    "Works: a name such as smollm2-135m-instruct (comes with maestrale) or "
    "mistralai/Mistral-7B-Instruct-v0.2 (from the hub), the path of a .gguf file, or a folder "
    "with a model."
)
CPU_ENGINE, GPU_ENGINE = "cpu", "vllm"
_HEAD = 8 << 20  # bytes at the beginning of a GGUF file, where its metadata is


def prepare(
    model: str,
    cache_dir: Path,
    progress: Progress,
    *,
    engine: str = CPU_ENGINE,
    revision: str | None = None,
    hub: HubSettings | None = None,
) -> Path:
    """The folder of the prepared model that `model` names, for the engine of that name.

    `model` is a known name, ORG/NAME (or ORG/NAME:VARIANT) on the hub, a .gguf file or a folder.
    Fetches what isn't here; the result, in `cache_dir`, is named by a digest of its source. The
    weights stay where they are, so this takes a second at first and milliseconds later.
    `progress(phase, fraction)` is called along the way; the fraction is None where it can't be
    known.

    Raises: ModelError with what is wrong and what would work.
    """
    if engine != GPU_ENGINE:
        engine = CPU_ENGINE  # the scripted one, say
    known = find_model(model)
    path = None if known is not None else local_path(model)
    try:
        if known is not None and engine != GPU_ENGINE:
            weights = weights_of(known, cache_dir, progress)
            if weights is not None:
                refuse_revision(model, revision)
                name, sampling = known.short_name, known.sampling
                return _prepare_gguf(weights, name, cache_dir, progress, sampling)
        if path is not None:
            refuse_revision(model, revision)
            return _prepare_path(path, cache_dir, progress, engine)
        repo, variant = remote_source(model, known, engine)
        return _prepare_remote(
            repo, variant, model, cache_dir, progress, engine, revision, hub or hub_settings()
        )
    except OSError as error:
        if is_full(cache_dir, error):
            raise ModelError(full_message(cache_dir)) from error
        where = str(error.filename or model)
        remedy = ""
        if Path(where).is_relative_to(cache_dir):
            remedy = " Let this user write there, or choose another cache folder with --cache-dir."
        raise ModelError(f"Can't prepare {model}: {where}: {error.strerror}.{remedy}") from error


def remote_source(model: str, known: KnownModel | None, engine: str) -> tuple[str, str]:
    """(ORG/NAME, variant) on the hub where `engine` gets this model from.

    Raises: ModelError when `model` can't be a name on the hub.
    """
    name = known.name if known is not None else model
    if known is not None and engine != GPU_ENGINE:
        name = known.cpu_source or known.name
    found = hub_name(name)
    if found is None:
        raise ModelError(f"{unknown_model(model)} {WHAT_WORKS}")
    return found


def _prepare_remote(
    repo: str,
    variant: str,
    model: str,
    cache_dir: Path,
    progress: Progress,
    engine: str,
    revision: str | None,
    hub: HubSettings,
) -> Path:
    from maestrale.models.download import pull

    pulled = pull(
        repo, hub, progress, engine=engine, revision=revision, variant=variant, refresh=False
    )
    known = find_model(model)
    name = known.name if known is not None else model
    if pulled.kind == "gguf":
        sampling = known.sampling if known is not None else NEUTRAL
        return _prepare_gguf(pulled.weights, name, cache_dir, progress, sampling)
    return prepare_folder(pulled.snapshot, cache_dir / "models", progress, engine=engine, name=name)


def _prepare_path(path: Path, cache_dir: Path, progress: Progress, engine: str) -> Path:
    if path.is_dir():
        if (path / METADATA_FILE).is_file():
            prepared = load_prepared(path)
            if bool(prepared.source) != (engine == CPU_ENGINE):
                raise ModelError(
                    f"{path} was prepared for another engine than {engine}. Give the model's name, "
                    "file or folder instead."
                )
            if found := damage(path):
                raise ModelError(f"{found}. Make {path} anew, or fetch it again.")
            return path
        selection = gguf_in(path) if engine == CPU_ENGINE else None
        if selection is not None:
            if said := picked(str(path), selection):
                logger.info("%s", said)
            called = readable(path.resolve().name)
            return _prepare_gguf(path / selection.weights, called, cache_dir, progress)
        return prepare_folder(path, cache_dir / "models", progress, engine=engine)
    if not path.is_file():
        raise ModelError(f"{path} is neither a file nor a folder. {WHAT_WORKS}")
    refuse_other_files(path)
    if engine == GPU_ENGINE:
        raise ModelError(
            f"{path} is for the CPU engine; {engine} needs a folder with safetensors, or a name on "
            "the hub. Leave out --engine, or give it --engine cpu."
        )
    return _prepare_gguf(path, readable(path.stem), cache_dir, progress)


def _prepare_gguf(
    path: Path,
    name: str,
    cache_dir: Path,
    progress: Progress,
    sampling: SamplingDefaults = NEUTRAL,
) -> Path:
    store = cache_dir / "models"
    try:
        parts = [part for part in gguf_parts(path.absolute()) if part.is_file()]
        path = parts[0]
        marks = [str(path), name, repr(sampling)]
        marks += [stamp_of(part, head=_HEAD if part == path else 0) for part in parts]
        return build_once(
            store,
            key_of(marks),
            lambda folder: fill_from_gguf(path, folder, name=name, sampling=sampling),
            progress,
        )
    except OSError as error:
        if is_full(store, error):
            raise ModelError(full_message(store)) from error
        raise ModelError(
            f"Can't prepare {path} in {store}: {error.filename or ''} {error.strerror}. "
            "Let this user write there, or choose another cache folder with --cache-dir."
        ) from error

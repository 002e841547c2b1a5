"""A prepared model: a small folder in the cache with what serving needs beside the weights.

tokenizer.json             Hugging Face tokenizer (tokenizer_kind "hf"), or the file named by
                           `tokenizer_file`: Mistral's (kind "mistral"), or a SentencePiece model
                           with added_tokens.json (kind "sentencepiece")
vocabulary.msgpack         what each token spells (models/vocabulary.py)
maestrale.json             this struct

The weights stay where they are: for the CPU engine `source` names them, for vLLM they are linked.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, structs

from maestrale.errors import ModelError
from maestrale.models.pooling import Pooling
from maestrale.models.sampling_defaults import NEUTRAL, SamplingDefaults

METADATA_FILE = "maestrale.json"
SOURCE_LINK = "source"
MOST_READ = 64 << 20  # bytes of a file that is read and compared at each start; others by size
FORMAT_VERSION = 8


# A string that is no UTF-8 has an error of its own.
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError)


class PreparedModel(Struct, frozen=True, kw_only=True):
    """What is known of a prepared model. Lengths in tokens.

    `source`: the path of the weights, a GGUF file (of a split one the first part) or a folder of
    safetensors (`weights_path`); empty where they are in the folder itself. `weights_digest`: a
    SHA-256 of them; empty for the CPU engine, which learns it as it reads them.
    `vocab_size` is the length of a row of logits. Plain text (not chat, whose template decides)
    is put between `text_prefix` and `text_suffix`. `named_templates`: further chat templates, such
    as tool_use. `special_tokens`: what templates call bos_token, eos_token and so on.
    `fim_token_ids`: marks for filling in the middle that the file states by id. `sizes` holds the
    bytes of each file beside this one, by name: a folder that differs was damaged.
    `sampling`: how its makers want it sampled. `pooling`: how it makes one vector of a text, or a
    score, where it is an embedding model or a reranker; `headless`: it has nothing to make tokens
    with. `digests`: SHA-256 of the files that are read again at each start; `checksum`: of this
    struct.
    """

    name: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    text_prefix: tuple[int, ...] = ()
    text_suffix: tuple[int, ...] = ()
    tokenizer_kind: Literal["hf", "mistral", "sentencepiece"]
    tokenizer_file: str  # relative to the folder
    mistral_version: str | None = None  # "v1", "v3", ... for tokenizer_kind "mistral"
    chat_template: str | None = None
    named_templates: dict[str, str] = {}
    special_tokens: dict[str, str] = {}
    fim_token_ids: dict[str, int] = {}
    source: str = ""
    weights_digest: str = ""
    sampling: SamplingDefaults = NEUTRAL
    pooling: Pooling | None = None
    headless: bool = False
    sizes: dict[str, int] = {}
    digests: dict[str, str] = {}
    checksum: str = ""
    format_version: int = FORMAT_VERSION


def named_source(path: Path, folder: Path) -> str:
    """What `source` is to be for weights at `path`, in the prepared model in `folder`.

    A path that is no text, which JSON can't hold, becomes a link in the folder.
    """
    path = path.absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        (folder / SOURCE_LINK).symlink_to(path)
        return SOURCE_LINK
    return str(path)


def weights_path(prepared: PreparedModel, folder: Path) -> Path:
    """Where the weights of the prepared model in `folder` are: a file, or a folder."""
    path = folder / prepared.source
    return path.readlink() if prepared.source == SOURCE_LINK else path


def weights_stamp(prepared: PreparedModel, folder: Path) -> str:
    """What changes when the files of the weights do: their sizes and times.

    Raises: ModelError where they can't be read.
    """
    path = weights_path(prepared, folder)
    try:
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        status = [(each.name, each.stat()) for each in inside]
    except OSError as error:
        raise ModelError(f"The model's {path.name} can't be read: {error.strerror}.") from error
    return " ".join(f"{name} {each.st_size} {each.st_mtime_ns}" for name, each in status)


def load_prepared(folder: Path) -> PreparedModel:
    """Read `maestrale.json` of a prepared model.

    Whether it is as it was made is asked once, at start: `damage`.

    Raises: ModelError when the folder is not one, or was written by another version.
    """
    path = folder / METADATA_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}.") from error
    return _decoded(text, folder)


def _decoded(text: bytes, folder: Path) -> PreparedModel:
    version = _version_of(text)
    try:
        if version in (None, FORMAT_VERSION):
            return msgspec.json.decode(text, type=PreparedModel)
    except _BROKEN as error:
        raise ModelError(f"{folder} is not a prepared model: {error}") from error
    raise ModelError(
        f"{folder} was prepared by another version of maestrale (format "
        f"{version}; this one reads {FORMAT_VERSION}). Delete it; it will be made anew."
    )


def _version_of(text: bytes) -> int | None:
    """The format of a `maestrale.json`, whatever fields it has; None where it is none."""
    try:
        return msgspec.json.decode(text, type=_Versioned).format_version
    except _BROKEN:
        return None


class _Versioned(Struct):
    format_version: int | None = None


def _checksum(prepared: PreparedModel) -> str:
    return hashlib.sha256(msgspec.json.encode(structs.replace(prepared, checksum=""))).hexdigest()


def save_prepared(prepared: PreparedModel, folder: Path) -> None:
    """Write `maestrale.json`, with sizes and digests of the files that stand in `folder`."""
    beside = (METADATA_FILE, SOURCE_LINK)
    files = [file for file in folder.iterdir() if file.is_file() and file.name not in beside]
    sizes = {file.name: file.stat().st_size for file in files}
    digests = {file.name: _digest(file) for file in files if sizes[file.name] <= MOST_READ}
    complete = structs.replace(prepared, sizes=sizes, digests=digests)
    complete = structs.replace(complete, checksum=_checksum(complete))
    (folder / METADATA_FILE).write_bytes(
        msgspec.json.format(msgspec.json.encode(complete), indent=2)
    )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def damage(folder: Path) -> str | None:
    """What of a prepared model is damaged or lacks, in words; None when it is as it was made.

    Takes some tens of milliseconds: small files are compared byte by byte, large ones by size.

    Raises: OSError where it can't be told, which is no damage: rights, or an error of the disk.
    """
    try:
        prepared = _decoded((folder / METADATA_FILE).read_bytes(), folder)
    except ModelError as error:
        return str(error)
    except (FileNotFoundError, NotADirectoryError):
        return f"{folder / METADATA_FILE} is missing"
    if prepared.checksum != _checksum(prepared):
        return f"{folder / METADATA_FILE} says other things than it was written with"
    for name, size in prepared.sizes.items():
        file = folder / name
        try:
            if file.stat().st_size != size:
                return f"{file} has {file.stat().st_size:,} bytes, and had {size:,}"
            if name in prepared.digests and _digest(file) != prepared.digests[name]:
                return f"{file} has other bytes than it was written with"
        except (FileNotFoundError, NotADirectoryError):
            return f"{file} is missing"
    return None


def is_intact(folder: Path) -> bool:
    """Whether the folder is a prepared model, with all its files as they were made.

    Raises: OSError where it can't be told.
    """
    return damage(folder) is None

"""How a model makes one vector of a text, or a score: what its GGUF file or folder says of it.

A folder of an embedding model says it in sentence-transformers' files: modules.json, and the
pooling module's config.json. Served are the last token's vector and the mean of all. A reranker
(rank) has a matrix behind the last token's, as the name of its architecture says; or its score are
the logits of yes and no, as its module LogitScore says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from maestrale.errors import ModelError
from maestrale.models.folder_words import read_json

Pooling = Literal["last", "mean", "rank"]

MODULES_FILE = "modules.json"
POOLING_FILES = ("*_Pooling/config.json", "*_LogitScore/config.json")
RERANKERS = frozenset({"Qwen3ForSequenceClassification"})
# GGUF's numbers (llama.cpp's enum) → ours; 0 is none.
_GGUF: Mapping[int, Pooling] = {1: "mean", 3: "last", 4: "rank"}
_GGUF_OTHERS = {2: "that of the first token (cls)"}
_MODES: Mapping[str, Pooling] = {"lasttoken": "last", "mean": "mean", "mean_tokens": "mean"}
_PREFIX = "pooling_mode_"
# Modules that are done here: the decoder, its pooling, and that vectors have the length 1.
_DONE = frozenset({"Transformer", "Pooling", "Normalize", "LogitScore"})
_ANSWERS = {"true_token_id": b"yes", "false_token_id": b"no"}  # of a LogitScore
_SERVED = (
    "Served are the last token's vector (last), the mean of all (mean), and a reranker's (rank)."
)


def pooling_of_gguf(metadata: Mapping[str, Any]) -> Pooling | None:
    """None where the file says of none. Raises: ModelError for one that isn't served."""
    key = f"{metadata.get('general.architecture')}.pooling_type"
    number = metadata.get(key, 0)
    if number == 0 and not isinstance(number, bool):
        return None
    pooling = None if isinstance(number, bool) else _GGUF.get(number)
    if pooling is None:
        what = _GGUF_OTHERS.get(number, "unknown here")
        raise ModelError(
            f"The GGUF file makes its vectors in a way that isn't served: {key} is {number}, "
            f"{what}. {_SERVED}"
        )
    return pooling


def is_reranker(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a reranker. What its last matrix has to be is another's."""
    classes = config.get("architectures")
    return isinstance(classes, list) and bool(classes) and classes[0] in RERANKERS


def pooling_of_folder(folder: Path, token_bytes: Sequence[bytes] = ()) -> Pooling | None:
    """None where the folder says of none. `token_bytes`: what its tokens spell.

    Raises: ModelError for one that isn't served.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return None
    try:
        modules = msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(
            f"{path} can't be read: {error}. Download it again; without it the folder is served "
            "as a chat model."
        ) from error
    pooling: Pooling | None = None
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _DONE:
            raise ModelError(
                f"{path} asks for a module {kind!r} behind the decoder, which isn't served: what "
                "works is a decoder with pooling alone (Qwen3-Embedding, E5-Mistral)."
            )
        where = folder / str(module.get("path", "")) / "config.json"
        if kind == "Pooling":
            pooling = _mode(where, folder)
        elif kind == "LogitScore":
            _check_answers(where, folder, token_bytes)
            pooling = "rank"
    return pooling


def _config(path: Path, folder: Path) -> dict[str, Any]:
    """A module's config. Raises: ModelError."""
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ModelError(
            f"{folder / MODULES_FILE} names {path}, which isn't there. Fetch it again."
        )
    return read_json(path)


def _check_answers(path: Path, folder: Path, token_bytes: Sequence[bytes]) -> None:
    """Whether a score is made of yes and no. Raises: ModelError."""
    config = _config(path, folder)
    for key, word in _ANSWERS.items():
        token: Any = config.get(key)
        known = isinstance(token, int) and 0 <= token < len(token_bytes)
        if not known or token_bytes[int(token)] != word:
            raise ModelError(
                f"{path} asks for a score by other tokens ({key} is {str(token)[:40]}), which "
                "isn't served: what works is yes and no (Qwen3-Reranker)."
            )


def _mode(path: Path, folder: Path) -> Pooling:
    """What a pooling module's config says. Raises: ModelError."""
    config = _config(path, folder)
    named = config.get("pooling_mode")
    given = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    flags = [key for key, on in config.items() if key.startswith(_PREFIX) and on is True]
    found = [str(mode) for mode in given] or [flag.removeprefix(_PREFIX) for flag in flags]
    if len(found) != 1 or found[0] not in _MODES:
        said = " and ".join(found) or "none"
        raise ModelError(f"{path} asks for the pooling {said}, which isn't served. {_SERVED}")
    return _MODES[found[0]]

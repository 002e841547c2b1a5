"""The vocabulary of a prepared model, kept as one msgpack file so that it loads in milliseconds."""

from __future__ import annotations

from pathlib import Path

import msgspec

from maestrale.errors import ModelError
from maestrale.models.vocabulary import Vocabulary

VOCABULARY_FILE = "vocabulary.msgpack"


def save_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    (folder / VOCABULARY_FILE).write_bytes(msgspec.msgpack.encode(vocabulary))


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a prepared model: one entry for each row of its logits.

    Raises: ModelError when the folder holds none, or a damaged one.
    """
    path = folder / VOCABULARY_FILE
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Vocabulary)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{folder} is not a prepared model: its vocabulary can't be read ({error}). "
            "Delete the folder; it will be made anew."
        ) from error

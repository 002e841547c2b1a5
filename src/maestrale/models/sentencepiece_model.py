"""A SentencePiece model: read from a tokenizer.model, or put together from what a GGUF file keeps.

The file is one protobuf message (sentencepiece_model.proto): pieces, how it was trained, how text
is normalised. Only what is needed of it is named here; the rest is passed on as it is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from maestrale.errors import ModelError
from maestrale.models.fim_tokens import marks_in
from maestrale.models.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    control_ids,
    pieces_of,
    spelling,
    token_id,
)
from maestrale.models.vocabulary import Vocabulary

ADDED_TOKENS_FILE = "added_tokens.json"
UNIGRAM, BPE = 1, 2
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the whole
_MODEL_TYPE, _BYTE_FALLBACK, _UNK_ID = 3, 35, 40  # of the trainer
_IDS = (41, 42, 43)  # BOS, EOS, PAD: -1 for none
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_BLANKS, _ESCAPE = 2, 3, 4, 5  # of the normaliser
_MINUS_ONE = (1 << 64) - 1
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # how a value is written
_Value = int | bytes


class VocabularyPiece(NamedTuple):
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """`trainer` and `normalizer` are messages as they stand in the file."""

    pieces: tuple[VocabularyPiece, ...]
    trainer: bytes
    normalizer: bytes
    rest: bytes = field(default=b"", repr=False)

    @property
    def dummy_prefix(self) -> bool:
        """Whether a space is put before a text's first word."""
        return bool(_last(self.normalizer, _DUMMY_PREFIX, 1))

    def without(self, names: Collection[str]) -> SentencePieceModel:
        """The same, but that no text gives these pieces."""
        pieces = tuple(
            piece._replace(kind=CONTROL) if piece.text in names and piece.kind != UNKNOWN else piece
            for piece in self.pieces
        )
        return replace(self, pieces=pieces)

    def without_prefix(self) -> SentencePieceModel:
        """The same, but that no space is put before a text's first word."""
        return replace(self, normalizer=self.normalizer + _number(_DUMMY_PREFIX, 0))

    def with_added(self, added: list[dict[str, Any]], size: int) -> SentencePieceModel:
        """The same with further tokens, for their spelling: what is between stays unused."""
        pieces = dict(enumerate(self.pieces))
        for token in added:
            kind = CONTROL if token["special"] else USER_DEFINED
            pieces[token["id"]] = VocabularyPiece(token["content"], 0.0, kind)
        count = max(len(self.pieces), *(token["id"] + 1 for token in added), 0) if added else 0
        count = min(max(count, len(self.pieces)), max(size, len(self.pieces)))
        unused = VocabularyPiece("", 0.0, UNUSED)
        return replace(self, pieces=tuple(pieces.get(token, unused) for token in range(count)))

    def added_tokens(self) -> list[dict[str, Any]]:
        """Control and user-defined pieces, as a tokenizer.json has them."""
        return [
            {
                "id": token,
                "content": piece.text.replace(SPACE, " "),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": piece.kind != USER_DEFINED,
            }
            for token, piece in enumerate(self.pieces)
            if piece.kind in (CONTROL, UNKNOWN, USER_DEFINED)
        ]

    def serialized(self) -> bytes:
        parts = [
            _text(
                _PIECES,
                _text(1, piece.text.encode())
                + _key(2, _FOUR)
                + struct.pack("<f", piece.score)
                + _number(3, piece.kind),
            )
            for piece in self.pieces
        ]
        return b"".join(
            [*parts, _text(_TRAINER, self.trainer), _text(_NORMALIZER, self.normalizer), self.rest]
        )

    def ids(self) -> dict[str, int]:
        """The id of each piece."""
        return {piece.text: token for token, piece in enumerate(self.pieces)}

    def vocabulary(self, size: int, ends: tuple[int, ...]) -> Vocabulary:
        """What each token spells, for `size` rows of logits."""
        spelled = [b""] * max(size, len(self.pieces))
        control: dict[str, int] = {}
        marks = marks_in(piece.text for piece in self.pieces)
        for token, piece in enumerate(self.pieces):
            if piece.kind in (CONTROL, UNKNOWN) or token in marks:
                control[piece.text] = token
            elif piece.kind != UNUSED:
                spelled[token] = spelling(piece.text)
        return Vocabulary(
            token_bytes=tuple(spelled),
            control_ids=control,
            eos_token_ids=ends,
            leading_space=self.dummy_prefix,
        )


def save_model(
    model: SentencePieceModel,
    added: list[dict[str, Any]],
    folder: Path,
    name: str,
    *,
    first_only: bool = False,
) -> None:
    """Write the model, and beside it the tokens that no text gives.

    `first_only`: the space before the first word is written at a prompt's beginning alone, not
    behind control tokens.
    """
    (folder / name).write_bytes(model.serialized())
    document = {"added_tokens": added, "prefix_first_only": first_only}
    (folder / ADDED_TOKENS_FILE).write_text(json.dumps(document))


def read_model(path: Path) -> SentencePieceModel:
    """The model in a tokenizer.model. Raises: ModelError when it is none, or damaged."""
    pieces: list[VocabularyPiece] = []
    specs = {_TRAINER: b"", _NORMALIZER: b""}
    rest = b""
    try:
        for number, value in _fields(path.read_bytes()):
            if number == _PIECES and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number in specs and isinstance(value, bytes):
                specs[number] += value
            elif isinstance(value, bytes):
                rest += _text(number, value)
    except (ValueError, IndexError, struct.error) as error:
        raise ModelError(f"{path} is no SentencePiece model, or a damaged one.") from error
    if not pieces:
        raise ModelError(f"{path} is no SentencePiece model: there are no pieces in it.")
    return SentencePieceModel(tuple(pieces), specs[_TRAINER], specs[_NORMALIZER], rest)


def new_model(
    pieces: tuple[VocabularyPiece, ...],
    *,
    kind: int,
    dummy_prefix: bool,
    remove_extra_blanks: bool,
    charsmap: bytes,
) -> SentencePieceModel:
    """A model of these pieces; `kind` is UNIGRAM or BPE."""
    unknown = next(at for at, piece in enumerate(pieces) if piece.kind == UNKNOWN)
    fallback = sum(piece.kind == BYTE for piece in pieces) == 256
    trainer = _number(_MODEL_TYPE, kind) + _number(_BYTE_FALLBACK, int(fallback))
    trainer += _number(_UNK_ID, unknown)
    trainer += b"".join(_number(each, _MINUS_ONE) for each in _IDS)
    normalizer = _text(1, b"identity") + _text(_CHARSMAP, charsmap)
    normalizer += _number(_DUMMY_PREFIX, int(dummy_prefix))
    normalizer += _number(_EXTRA_BLANKS, int(remove_extra_blanks)) + _number(_ESCAPE, 1)
    return SentencePieceModel(pieces, trainer, normalizer)


def _piece(message: bytes) -> VocabularyPiece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 2 and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    return VocabularyPiece(text, score, kind)


def _last(message: bytes, wanted: int, default: int) -> int:
    found = default
    for number, value in _fields(message):
        if number == wanted and isinstance(value, int):
            found = value
    return found


def _fields(message: bytes) -> Iterator[tuple[int, _Value]]:
    """Number and value of each field; those of fixed size come as bytes. Raises: ValueError."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        form = key & 7
        value: _Value
        if form == _VARINT:
            value, at = _read_varint(message, at)
        else:
            if form == _BYTES:
                length, at = _read_varint(message, at)
            elif form in (_EIGHT, _FOUR):
                length = 8 if form == _EIGHT else 4
            else:
                raise ValueError("no protobuf message")
            value, at = message[at : at + length], at + length
            if at > len(message):
                raise ValueError("cut off")
        yield key >> 3, value


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _key(number: int, form: int) -> bytes:
    return _varint(number << 3 | form)


def _number(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _varint(value)


def _text(number: int, value: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(value)) + value


_KINDS = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
# Phi-3's control tokens, but for these, take the blanks behind them; its GGUF files don't say so.
_PHI3_KEEPS_BLANKS = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def sentencepiece_model(metadata: Mapping[str, Any]) -> SentencePieceModel:
    """The model that a GGUF file of the tokenizer kind "llama" was made from.

    Raises: ModelError when what it takes is missing or damaged.
    """
    pieces, kinds = pieces_of(metadata)
    scores: Any = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(pieces):
        raise ModelError(
            "The GGUF file has a SentencePiece tokenizer without scores, so its pieces can't be "
            "merged in their order. Take another GGUF file of the model, or its safetensors."
        )
    scores = [float(score) for score in scores[: len(pieces)]]
    unknown = _unknown(metadata, pieces, kinds)
    ends = set(control_ids(metadata).values())
    seen: set[str] = set()
    built = []
    for token, (text, score, kind) in enumerate(zip(pieces, scores, kinds, strict=True)):
        kind = kind if kind in _KINDS else NORMAL
        if token == unknown:
            kind = UNKNOWN
        elif kind == UNKNOWN or token in ends:
            kind = CONTROL
        if kind == USER_DEFINED:  # converters write its spaces as such
            text = text.replace(" ", SPACE)
        if not text or text in seen:  # what the library doesn't take; no text gives it either way
            text, kind = f"\ufdd0{token}", UNUSED
        seen.add(text)
        built.append(VocabularyPiece(text, score, kind))
    if unknown is None:
        built.append(VocabularyPiece("\ufdd0unknown", 0.0, UNKNOWN))
    normal = (piece.score for piece in built if piece.kind == NORMAL)
    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
    return new_model(
        tuple(built),
        kind=BPE if all(score.is_integer() for score in normal) else UNIGRAM,
        dummy_prefix=_flag(metadata, "add_space_prefix", True),
        remove_extra_blanks=_flag(metadata, "remove_extra_whitespaces", False),
        charsmap=bytes(byte & 0xFF for byte in charsmap) if isinstance(charsmap, list) else b"",
    )


def added_tokens(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Control and user-defined tokens, as a tokenizer.json has them."""
    pieces, kinds = pieces_of(metadata)
    control = control_ids(metadata)
    name = str(metadata.get("general.name", "")).lower()
    phi3 = "phi-3" in name or "phi3" in name or metadata.get("general.architecture") == "phi3"
    return [
        {
            "id": token,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": phi3 and piece in control and piece not in _PHI3_KEEPS_BLANKS,
            "normalized": False,
            "special": piece in control,
        }
        for token, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
        if kind == USER_DEFINED or piece in control
    ]


def _unknown(metadata: Mapping[str, Any], pieces: list[str], kinds: list[int]) -> int | None:
    """The one token that stands for what the vocabulary can't spell."""
    stated = token_id(metadata, "unknown", len(pieces))
    if stated is not None and kinds[stated] in (UNKNOWN, CONTROL):
        return stated
    found = [token for token, kind in enumerate(kinds) if kind == UNKNOWN]
    if found:
        return found[0]
    return pieces.index("<unk>") if "<unk>" in pieces else None


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}")
    return value if isinstance(value, bool) else default

"""Mistral's tokenizers as mistral-common ships them: their files, and which one a GGUF carries.

Reads the files with sentencepiece alone: mistral-common itself takes half a second to import.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.gguf_tokenizer import pieces_of
from maestrale.models.vocabulary import Vocabulary, decode_byte_level

# Mistral's prompts differ by version; the file's name is how mistral-common knows it.
TOKENIZER_FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "v3-tekken": "tekken_240718.json",
}
TEKKEN_FILE = "tekken.json"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space


def shipped_file(version: str) -> Path:
    """Where the installed mistral-common keeps the tokenizer of `version`.

    Raises: ModelError when mistral-common isn't installed, or ships no such file.
    """
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or spec.origin is None:
        raise ModelError("mistral-common is not installed; install maestrale again.")
    path = Path(spec.origin).parent / "data" / TOKENIZER_FILES[version]
    if not path.is_file():
        raise ModelError(f"The installed mistral-common has no {path.name}; install it again.")
    return path


def recognise(metadata: Mapping[str, Any]) -> str | None:
    """The version of Mistral's tokenizer and prompts that a GGUF file carries, or None.

    The pieces must be Mistral's, id by id, and the chat template, if there is one, Mistral's
    too: other models were trained from Mistral's with its vocabulary and their own prompts.
    """
    pieces, _ = pieces_of(metadata)
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and "[INST]" not in template:
        return None
    if metadata.get("tokenizer.ggml.model") == "llama":
        for version in ("v1", "v2", "v3", "v7"):
            if _sentencepiece_pieces(version) == pieces:
                return version
    elif metadata.get("tokenizer.ggml.pre") == "tekken":
        # v7 shares v3's tekken vocabulary; its prompts are told by this marker.
        later = isinstance(template, str) and "[SYSTEM_PROMPT]" in template
        if not later and _is_tekken(pieces):
            return "v3-tekken"
    return None


def mistral_vocabulary(version: str, vocab_size: int) -> Vocabulary:
    """What each token of a Mistral tokenizer spells, for `vocab_size` rows of logits."""
    if version == "v3-tekken":
        return _tekken_vocabulary(vocab_size)
    model = _sentencepiece_model(version)
    spelled = [b""] * max(vocab_size, model.vocab_size())
    control: dict[str, int] = {}
    for token in range(model.vocab_size()):
        piece = model.id_to_piece(token)
        if model.IsControl(token) or model.IsUnknown(token):
            control[piece] = token
        elif model.IsByte(token):
            spelled[token] = bytes([int(piece[3:5], 16)])
        else:
            spelled[token] = piece.replace(_SPACE, " ").encode()
    return Vocabulary(
        token_bytes=tuple(spelled),
        control_ids=control,
        eos_token_ids=(model.eos_id(),),
        leading_space=True,
    )


def tekken_vocabulary(file: Path, vocab_size: int) -> tuple[Vocabulary, str]:
    """What each token of a tekken.json spells, and the version of the prompts that it states.

    Raises: ModelError when mistral-common can't use the file.
    """
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    try:
        tokenizer = Tekkenizer.from_file(file)
    except (ValueError, TypeError, LookupError, AssertionError) as error:
        raise ModelError(
            f"{file} is no tokenizer of Mistral's that the installed mistral-common knows: {error}"
        ) from error
    size, special = tokenizer.n_words, tokenizer.num_special_tokens
    if size > vocab_size:
        raise ModelError(f"{file} has {size} tokens, the model only {vocab_size}.")
    names = {tokenizer.id_to_piece(token): token for token in range(special)}
    spelled = [b""] * special + [tokenizer.id_to_byte_piece(at) for at in range(special, size)]
    return Vocabulary(
        token_bytes=tuple(spelled + [b""] * (vocab_size - size)),
        control_ids=names,
        eos_token_ids=(tokenizer.eos_id,),
    ), str(tokenizer.version.value)


def _sentencepiece_model(version: str) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(shipped_file(version)))


def _sentencepiece_pieces(version: str) -> list[str]:
    model = _sentencepiece_model(version)
    return [model.id_to_piece(token) for token in range(model.vocab_size())]


def _tekken_pieces() -> tuple[list[str], list[bytes]]:
    """The names of tekken's control tokens, and what the tokens after them spell."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    document = json.loads(shipped_file("v3-tekken").read_bytes())
    config = document["config"]
    size, special = config["default_vocab_size"], config["default_num_special_tokens"]
    names = [str(token["token_str"]) for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
    names += [
        Tekkenizer.SPECIAL_TOKEN_TEMPLATE.format(id=token) for token in range(len(names), special)
    ]
    vocab = document["vocab"][: size - special]
    return names, [base64.b64decode(entry["token_bytes"]) for entry in vocab]


def _is_tekken(pieces: Sequence[str]) -> bool:
    names, spelled = _tekken_pieces()
    special = len(names)
    return (
        len(pieces) == special + len(spelled)
        and list(pieces[:10]) == names[:10]
        and list(map(decode_byte_level, pieces[special:])) == spelled
    )


def _tekken_vocabulary(vocab_size: int) -> Vocabulary:
    names, spelled = _tekken_pieces()
    token_bytes = [b""] * len(names) + spelled
    token_bytes += [b""] * (vocab_size - len(token_bytes))
    return Vocabulary(
        token_bytes=tuple(token_bytes),
        control_ids={name: token for token, name in enumerate(names)},
        eos_token_ids=(names.index("</s>"),),
    )

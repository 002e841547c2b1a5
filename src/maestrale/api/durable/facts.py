"""What is decided once for an answer, and has to be the same when it is made again."""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import structs

from maestrale.chat.answer import Answer
from maestrale.durable.ledger import Facts
from maestrale.engines.base import EngineInfo
from maestrale.errors import CannotResume


def facts_of(answer: Answer, info: EngineInfo) -> Facts:
    """Those of an answer that is about to begin."""
    return Facts(
        answer=answer.id,
        created=answer.created,
        seed=answer.seed,
        fingerprint=info.fingerprint,
        prompt=_digest(answer),
    )


def check_same(begun: Facts, now: Facts, info: EngineInfo) -> None:
    """Whether one that was begun with these facts comes out the same. Raises: CannotResume."""
    if "deterministic" not in info.features:
        raise CannotResume(
            "This answer can't be gone on with: the server was started anew, and its engine does "
            "not give the same answer twice. Send the request again."
        )
    if begun.fingerprint != now.fingerprint:
        raise CannotResume(
            "This answer can't be gone on with: it was begun by another engine (fingerprint "
            f"{begun.fingerprint}, now {now.fingerprint}). Send the request again."
        )
    if begun.prompt != now.prompt:
        raise CannotResume(
            "This answer can't be gone on with: with its present settings the server reads the "
            "request otherwise. Send the request again."
        )


def _digest(answer: Answer) -> bytes:
    """Of all that the answer's tokens follow from."""
    asked = [structs.replace(each, request_id="") for each in answer.requests]
    return hashlib.blake2b(msgspec.msgpack.encode(asked), digest_size=16).digest()

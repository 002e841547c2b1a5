"""What is decided once for an answer, and has to be the same when it is made again."""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import structs

from maestrale.chat.answer import Answer
from maestrale.durable.ledger import Facts
from maestrale.engines.base import EngineInfo
from maestrale.errors import CannotResume

INSTEAD = "Send the request again."


def facts_of(answer: Answer, info: EngineInfo) -> Facts:
    """Those of an answer that is about to begin."""
    return Facts(
        answer=answer.id,
        created=answer.created,
        seed=answer.seed,
        fingerprint=info.fingerprint,
        prompt=_digest(answer),
    )


def check_same(begun: Facts, now: Facts, info: EngineInfo, instead: str = INSTEAD) -> None:
    """Whether one that was begun with these facts comes out the same; `instead`: what to do where
    it doesn't. Raises: CannotResume.
    """
    if "deterministic" not in info.features:
        raise cannot_resume(
            "the server was started anew, and its engine does not give the same answer twice.",
            instead,
        )
    if begun.fingerprint != now.fingerprint:
        raise cannot_resume(
            f"it was begun by another engine (fingerprint {begun.fingerprint}, now "
            f"{now.fingerprint}).",
            instead,
        )
    if begun.prompt != now.prompt:
        raise cannot_resume(
            "with its present settings the server reads the request otherwise.", instead
        )


def cannot_resume(reason: str, instead: str) -> CannotResume:
    """The error for an answer that was begun, and can't be made again as it was."""
    return CannotResume(f"This answer can't be gone on with: {reason} {instead}")


def _digest(answer: Answer) -> bytes:
    """Of all that the answer's tokens follow from."""
    asked = [structs.replace(each, request_id="") for each in answer.requests]
    return hashlib.blake2b(msgspec.msgpack.encode(asked), digest_size=16).digest()

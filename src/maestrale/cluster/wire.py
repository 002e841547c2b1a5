"""What an API process and a replica say to each other: msgpack, through Ray Serve's handle.

A request is one call of `run`, which lasts as long as the request does, so that Ray Serve counts
it. Its tokens don't come back with it: one stream for each pair of API process and replica
(`listen`) brings the deltas of all requests, many in one item.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from maestrale.engines.base import EngineConfig, EngineInfo, EngineStats
from maestrale.supervise.messages import Abort, Delta, RequestFailed

DEPLOYMENT = "engine"


class ReplicaSpec(Struct, frozen=True, kw_only=True):
    """What a replica is made from. `model_dir` of `config` may lie on the API's machine only:
    then the node prepares `model` itself, in `cache_dir`, or its own where that is None.

    `version` is the API's; `tune` leaves what `config` leaves open to the node; `pin` gives the
    engine `config.threads` cores of its own. `stage_gpus`: it has a placement group, and each
    stage of its pipeline so many GPUs of one node; 0: its GPUs are all of one node, or none.
    `deployed_by` is the API process that asked for it.
    """

    config: EngineConfig
    model: str
    version: str
    ray: str
    python: str
    revision: str | None = None
    cache_dir: str | None = None
    tune: bool = False
    pin: bool = False
    stage_gpus: int = 0
    deployed_by: str = ""


# replica → API process


class Hello(Struct, tag=True, frozen=True):
    """The first message of a stream: what the replica is, and where."""

    model: str
    info: EngineInfo
    node: str
    host: str
    pid: int
    engine_pid: int
    base: EngineStats
    """Where the counters stand at the stream's beginning."""
    deployed_by: str = ""
    """The API process whose settings it has."""


class Beat(Struct, tag=True, frozen=True):
    """Twice a second. `held`: the requests of this API process that the replica works on;
    `others`: how many it has of all others. `stats` may be half a second older than both.
    """

    stats: EngineStats
    held: tuple[str, ...]
    others: int = 0


class Lost(Struct, tag=True, frozen=True):
    """The engine is gone; the replica ends after this. `blamed`: it died in its work, of which a
    request may be the cause; else somebody killed it.
    """

    reason: str
    blamed: bool = True


FromReplica = Hello | Delta | RequestFailed | Beat | Lost

# API process → replica; an empty list says only that the API process lives.


class Bye(Struct, tag=True, frozen=True):
    """The API process is done with this replica: the stream ends."""


ToReplica = list[Abort | Bye]

_encoder = msgspec.msgpack.Encoder()
_from_replica = msgspec.msgpack.Decoder(list[FromReplica])
_to_replica = msgspec.msgpack.Decoder(ToReplica)


def pack(messages: Sequence[Struct]) -> bytes:
    return _encoder.encode(messages)


def from_replica(data: bytes) -> list[FromReplica]:
    return _from_replica.decode(data)


def to_replica(data: bytes) -> ToReplica:
    return _to_replica.decode(data)

"""What the status page, the metrics and `doctor` show of a replica."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from maestrale.engines.base import EngineStats

if TYPE_CHECKING:
    from maestrale.engines.ray_serve.link import ReplicaLink


class ReplicaStatus(Struct, frozen=True, kw_only=True):
    """`state`: joining, up, draining or lost. `in_flight`: requests of this API process that it
    has; `stats` counts all of them. `node` is Ray's id of the node, `host` its name.
    """

    name: str
    state: str
    node: str
    host: str
    pid: int
    engine_pid: int
    fingerprint: str
    in_flight: int
    stats: EngineStats


def status_of(link: ReplicaLink) -> ReplicaStatus:
    hello = link.hello
    return ReplicaStatus(
        name=link.name,
        state=link.state,
        node=hello.node if hello else "",
        host=hello.host if hello else "",
        pid=hello.pid if hello else 0,
        engine_pid=hello.engine_pid if hello else 0,
        fingerprint=hello.info.fingerprint if hello else "",
        in_flight=len(link.wires),
        stats=link.stats,
    )

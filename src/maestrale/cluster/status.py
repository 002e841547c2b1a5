"""What the status page, the metrics and `doctor` show of a replica."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestrale.engines.base import ReplicaStatus

if TYPE_CHECKING:
    from maestrale.cluster.replica_connection import ReplicaLink


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

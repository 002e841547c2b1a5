"""What the status page, the metrics and `doctor` show of a replica."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestrale.engines.base import ReplicaStatus

if TYPE_CHECKING:
    from maestrale.cluster.replica_connection import ReplicaConnection


def status_of(connection: ReplicaConnection) -> ReplicaStatus:
    hello = connection.hello
    return ReplicaStatus(
        name=connection.name,
        state=connection.state,
        node=hello.node if hello else "",
        host=hello.host if hello else "",
        pid=hello.pid if hello else 0,
        engine_pid=hello.engine_pid if hello else 0,
        fingerprint=hello.info.fingerprint if hello else "",
        in_flight=len(connection.wires),
        stats=connection.stats,
    )

"""The API processes of one server that run on other machines, as the status page shows them."""

from __future__ import annotations

from msgspec import Struct


class ApiNodeStatus(Struct, frozen=True, kw_only=True):
    """`node` is the cluster's id of the node, `address` how the cluster reaches it, `host` its
    name. `detail`: why it is not ready. `url`: where it answers; on loopback its own machine
    alone reaches it.
    """

    node: str
    address: str
    host: str
    state: str
    detail: str
    url: str
    pid: int
    restarts: int

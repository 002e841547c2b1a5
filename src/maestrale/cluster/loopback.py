"""Where Ray listens. Its own processes obey the node's address only if that is loopback.

`RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0` makes Ray take 127.0.0.1 as the machine's address, and bind
to it; given as an argument, 127.0.0.1 would be replaced by the machine's outer address. One
server of Ray Serve's replicas binds to every interface whatever the address: `bind_to_node`.
"""

from __future__ import annotations

from typing import Any


def bind_to_node() -> None:
    """Make the gRPC server of the replica in this process listen on its node's address only."""
    from ray.serve._private import replica
    from ray.util import get_node_ip_address

    original = replica.add_port_to_grpc_server

    def bound(server: Any, address: str) -> int:
        _, _, port = address.rpartition(":")
        host = get_node_ip_address()
        host = f"[{host}]" if ":" in host else host
        return int(original(server, f"{host}:{port}"))

    if getattr(original, "__name__", "") != "bound":
        replica.add_port_to_grpc_server = bound

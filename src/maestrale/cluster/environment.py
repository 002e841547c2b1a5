"""What Ray takes from the environment only, set before it is imported, and where it listens.

Ray's processes inherit the environment. They obey the node's address only if that is loopback:
`RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0` makes Ray take 127.0.0.1 as the machine's address, and bind
to it; given as an argument, 127.0.0.1 would be replaced by the machine's outer address. One
server of Ray Serve's replicas binds to every interface whatever the address: `bind_to_node`.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from maestrale.cluster.options import ClusterOptions
from maestrale.engines.base import EngineConfig
from maestrale.errors import EngineError

LEVEL = "cpu_level"


def set_environment(options: ClusterOptions) -> None:
    """Token authentication always; a token of our own, and loopback, for a Ray of our own.

    Raises: EngineError when the token can't be read.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Signals are ours; Ray's handler would print a stack of each.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    if options.address is None:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_enable_metrics_collection"] = "0"  # noqa: SIM112 - Ray's spelling
    elif options.token_file is not None:
        os.environ["RAY_AUTH_TOKEN"] = _read_token(options.token_file)


def with_level_here(config: EngineConfig) -> EngineConfig:
    """`config` with the instruction set that this node's environment forces, if the server's
    settings leave it open: nodes may differ, and give the same bits all the same.
    """
    level = os.environ.get(f"MAESTRALE_{LEVEL.upper()}")
    if not level or config.engine != "cpu" or LEVEL in config.options:
        return config
    return replace(config, options={**config.options, LEVEL: level})


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


def _read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"--ray-token-file {path} can't be read: {error}.") from error
    if not token:
        raise EngineError(f"--ray-token-file {path} is empty.")
    return token

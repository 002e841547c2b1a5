"""Ray itself: one of our own on this machine, or the cluster at an address.

Our own listens on loopback only, with Ray's token authentication on and a token that nobody else
knows; its files lie in a folder that goes with it. A cluster must ask for a token as well: Ray
runs the code of whoever can reach it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import shutil
import socket
import tempfile
import threading
from typing import Any

from maestrale.cluster.environment import set_environment
from maestrale.cluster.options import ClusterOptions
from maestrale.errors import EngineError
from maestrale.processes import private_folder

INSTALL_RAY = (
    "Ray is not installed. It is an extra of maestrale: run\n    scripts/extra ray\nand start "
    "again. For one engine on this machine leave --replicas and --ray-address out."
)
NAMESPACE = "maestrale"
KNOCK_SECONDS = 5.0
PREFIX = "mst"  # of the folder's name; the process's number follows
OBJECT_STORE = 100 * 2**20  # bytes; messages between us are small and don't go through it
LONGEST_SOCKET_FOLDER = 40
"""Ray's socket names, below its folder, must fit in 107 characters."""

logger = logging.getLogger(__name__)


def require_ray() -> None:
    """Raises: EngineError that says how to install Ray, when it isn't."""
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None or importlib.util.find_spec("grpc") is None:
        raise EngineError(INSTALL_RAY)


class Runtime:
    """This process's connection to Ray: one at a time, which engines on one cluster share."""

    node_ip: str | None = None
    """Of the node that this process belongs to, where it was told; else Ray finds out."""
    _lock = threading.Lock()
    _users: list[Runtime] = []
    _folder: str | None = None
    """Of a Ray of our own."""

    def __init__(self, options: ClusterOptions) -> None:
        self._options = options

    def join(self) -> None:
        """Start Ray here, or join the cluster; Ray Serve runs when this returns. Blocks.

        Raises: EngineError that says what is wrong and what to do.
        """
        require_ray()
        with self._lock:
            if not self._users:
                self._join()
            elif self._users[0]._options.address != self._options.address:
                raise EngineError("This process is connected to another Ray cluster already.")
            self._users.append(self)

    @property
    def alone(self) -> bool:
        """Whether no other engine of this process uses it."""
        return self._users == [self]

    def _join(self) -> None:
        set_environment(self._options)
        import ray
        from ray import serve

        for name in ("ray", "ray.serve"):  # what matters of it we say ourselves
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if self._options.address is None:
            self._start(ray)
        else:
            self._connect(ray, self._options.address)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)

    def leave(self) -> None:
        """Disconnect; a Ray of our own ends, and its files are removed. Blocks."""
        with self._lock:
            if self in self._users:
                self._users.remove(self)
                if not self._users:
                    import ray

                    ray.shutdown()
                    self._clean()

    @staticmethod
    def _clean() -> None:
        if Runtime._folder is not None:
            shutil.rmtree(Runtime._folder, ignore_errors=True)
            Runtime._folder = None

    def _start(self, ray: Any) -> None:
        folder = Runtime._folder = ray_folder()
        try:
            ray.init(
                address="local",
                # So many processes Ray begins at once. How many replicas run is the user's word:
                # they reserve none of these.
                num_cpus=max(1, self._options.most),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=folder,
            )
        except Exception as error:
            ray.shutdown()
            self._clean()
            raise EngineError(
                f"Ray could not start on this machine: {_first_line(error)}"
            ) from error

    def _connect(self, ray: Any, address: str) -> None:
        _knock(address)
        try:
            ray.init(
                address=address,
                _node_ip_address=self.node_ip,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as error:
            raise EngineError(_why_not_joined(address, error)) from error


def ray_folder() -> str:
    """A new folder for Ray's files; those of servers that were killed are removed."""
    base = tempfile.gettempdir()
    if len(base) > LONGEST_SOCKET_FOLDER:
        base = "/tmp"  # noqa: S108 - Ray's sockets have long names; the folder is private
    return str(private_folder(PREFIX, base))


def _knock(address: str) -> None:
    """Raises: EngineError when nobody listens there. Ray itself would try on for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise EngineError(
            f"--ray-address {address}: an address and a port are needed, as in 10.0.0.1:6379."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(_why_not_joined(address, error)) from error


def _why_not_joined(address: str, error: Exception) -> str:
    cause = error.__cause__ or error.__context__
    text = f"{error} {cause}"
    if "ersion mismatch" in text:
        return (
            f"The Ray cluster at {address} runs other versions than this machine: "
            f"{_first_line(error)} Install the same maestrale, and so the same Ray and Python, on "
            "every node."
        )
    if "no authentication token was found" in text or "find an authentication token" in text:
        return (
            f"A token is needed for the Ray cluster at {address}. Give the file that holds it with "
            "--ray-token-file (or set RAY_AUTH_TOKEN)."
        )
    if "nauthenticated" in text or "InvalidAuthToken" in text or "AuthenticationError" in text:
        return (
            f"The Ray cluster at {address} did not accept the token. Give the file that holds the "
            "cluster's token with --ray-token-file (or set RAY_AUTH_TOKEN)."
        )
    return (
        f"There is no Ray cluster at {address}: {_first_line(error)} Start one with `ray start "
        "--head` (docs/guide/many.md), and check the address, the port (6379) and the firewall."
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".") + "."


def ray_version() -> str:
    return importlib.metadata.version("ray")

"""What `serve` can say about replicas, read once and checked."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

from maestrale.errors import SettingsError

MOST_REPLICAS = 1024
DEFAULT_SEQUENCES = 64


class ClusterOptions(Struct, frozen=True, kw_only=True):
    """Where the replicas run and how many there are.

    `address` None: a Ray of our own on this machine, gone with the server. `app`: the Ray Serve
    application's name; API processes with the same one share the replicas. `owner`: this process
    deploys it and takes it away at the end. `token_file`: the cluster's token; None: where Ray
    looks for it. `cpus` and `gpus`: what Ray reserves for one replica. `drain`: seconds that a
    replica which is taken away has for its requests.
    """

    model: str
    least: int
    most: int
    address: str | None = None
    app: str = "maestrale"
    owner: bool = True
    token_file: Path | None = None
    routing: str = "prefix"
    revision: str | None = None
    cache_dir: str | None = None
    cpus: float = 1.0
    gpus: int = 0
    pipeline: int = 1
    api_processes: int = 1
    drain: float = 600.0
    upscale_delay: float = 5.0
    downscale_delay: float = 60.0
    pin: bool = False


def parse_replicas(text: str) -> tuple[int, int]:
    """`3` or `1-4` as (least, most). Raises: SettingsError."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", text)
    if match is None:
        raise SettingsError(
            f"--replicas {text}: give a number, or a range for autoscaling, as in 1-4."
        )
    least = int(match[1])
    most = int(match[2]) if match[2] is not None else least
    if not 1 <= least <= most <= MOST_REPLICAS:
        raise SettingsError(
            f"--replicas {text}: between 1 and {MOST_REPLICAS}, and the lower number first."
        )
    return least, most

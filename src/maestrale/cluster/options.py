"""What a server asks of its replicas and of Ray."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

APP = "maestrale"
DEFAULT_SEQUENCES = 64
LONGEST_NAME = 80


class ClusterOptions(Struct, frozen=True, kw_only=True):
    """Where the replicas run and how many there are.

    `address` None: a Ray of our own on this machine, gone with the server. `app`: the Ray Serve
    application's name; API processes with the same one share the replicas. `owner`: this process
    deploys it, and takes it away at the end unless another one has deployed it anew. `token_file`:
    the cluster's token; None: where Ray looks for it. `cpus` and `gpus`: what Ray reserves for
    one replica (no CPUs on a Ray of our own, where nobody else takes any), of which each of its
    `stages` takes an equal part of the GPUs, of one node.
    `api_everywhere`: every node has an API process, which `api_processes`
    then does not count. `drain`: seconds that a replica which is taken away has for its
    requests.
    """

    model: str
    least: int
    most: int
    address: str | None = None
    app: str = APP
    owner: bool = True
    token_file: Path | None = None
    routing: str = "prefix"
    revision: str | None = None
    cache_dir: str | None = None
    cpus: float = 1.0
    gpus: int = 0
    stages: int = 1
    api_processes: int = 1
    api_everywhere: bool = False
    drain: float = 600.0
    upscale_delay: float = 5.0
    downscale_delay: float = 60.0
    pin: bool = False

    @property
    def stage_gpus(self) -> int:
        """GPUs that share the layers of one pipeline stage."""
        return self.gpus // self.stages


def app_name(model: str, revision: str | None, variant: str = "") -> str:
    """The application of a model: servers of one model share it, those of others don't touch it.

    `variant` tells those of one server apart which have the same model.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{model}-{revision or ''}-{variant}").strip("-.")
    return f"{APP}-{name[-LONGEST_NAME:]}"

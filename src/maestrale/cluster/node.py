"""What a node must have for a replica: the same maestrale, and the model, which it prepares."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

import maestrale
from maestrale.cluster.wire import ReplicaSpec
from maestrale.errors import EngineError, MaestraleError


def check_version(spec: ReplicaSpec) -> None:
    """Raises: EngineError when this node runs another maestrale than the API."""
    if maestrale.__version__ != spec.version:
        raise EngineError(
            f"The node {platform.node()} has maestrale {maestrale.__version__}, the API process "
            f"{spec.version}. Install the same version on every node."
        )


def model_folder(spec: ReplicaSpec) -> str:
    """The prepared model on this node. Raises: EngineError that says what is missing."""
    given = spec.config.model_dir
    if not given or Path(given).is_dir():
        return given
    from maestrale.config.paths import default_cache_dir
    from maestrale.models.resolve import prepare

    cache = Path(spec.cache_dir) if spec.cache_dir else default_cache_dir()
    try:
        folder = prepare(
            spec.model,
            cache,
            lambda phase, fraction: None,
            engine=spec.config.engine,
            revision=spec.revision,
        )
    except MaestraleError as error:
        raise EngineError(
            f"The node {platform.node()} does not have the model {spec.model}: {error}"
        ) from error
    return str(folder)


def folder_there(spec: bytes) -> tuple[str, str, str]:
    """Run on another node of a replica: (the node's name, the model's folder, what is wrong)."""
    try:
        decoded = msgspec.msgpack.decode(spec, type=ReplicaSpec)
        check_version(decoded)
        return platform.node(), model_folder(decoded), ""
    except MaestraleError as error:
        return platform.node(), "", str(error)

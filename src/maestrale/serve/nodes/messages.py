"""What the first server tells an API process on another node, and hears of it."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from maestrale.keys import Key


class NodeSpec(Struct, frozen=True):
    """What every node's API process is to be. `settings` are those of `pack_settings`, without any
    key, and so are those of each of the `models`. `default_cache`: the node's own place for models,
    not that of the settings.
    """

    settings: bytes
    models: tuple[bytes, ...]
    default_cache: bool


class ChildSpec(Struct, frozen=True):
    """`NodeSpec` with what only the node knows. `parent`: the process that must live."""

    node: NodeSpec
    parent: int
    cluster: str
    node_ip: str
    key_file: str


class Word(Struct, frozen=True):
    """A line that the child writes: where it answers, or why it can't."""

    url: str = ""
    failed: str = ""


class NodeState(Struct, frozen=True):
    """How it stands on a node. `version` grows with each change."""

    version: int
    state: str
    detail: str = ""
    url: str = ""
    pid: int = 0
    restarts: int = 0
    host: str = ""


def pack_keys(keys: list[Key] | None) -> bytes:
    return msgspec.msgpack.encode(keys)


def unpack_keys(packed: bytes) -> list[Key] | None:
    """None: no key is asked for."""
    return msgspec.msgpack.decode(packed, type=list[Key] | None)

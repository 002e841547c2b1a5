"""READ FIRST of this package. In the first server: an API process on every other node.

It looks at the cluster's nodes every few seconds. Each gets an actor pinned to it, whose news are
waited for: so the actor's death is seen at once, and a node that joins later is served, too.
Nothing here ends the first server; what can't start elsewhere is told in the log and on /status.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from maestrale import __version__
from maestrale.api.operations.node_status import ApiNodeStatus
from maestrale.config.paths import default_cache_dir
from maestrale.config.settings import Settings
from maestrale.keys import Key, KeyStore
from maestrale.logs import LOGGER
from maestrale.serve.nodes.messages import NodeSpec, NodeState, pack_keys
from maestrale.serve.workers.messages import pack_settings
from maestrale.supervise.process import Restarts

LOOK = 2.0  # seconds between two looks at which nodes there are, and at the keys
ATTEMPTS = 3  # actors in a row of which nothing is heard before a node is given up
LAST_WORDS = 15.0  # seconds beyond the grace that an actor has to end its API process


class ApiNodes:
    """Begin with `start`, once the replicas are deployed; end with `stop`, before they go."""

    def __init__(self, settings: Settings, models: Sequence[Settings]) -> None:
        """`models`: with the engines that were chosen, whatever another node would choose."""
        self._spec = msgspec.msgpack.encode(node_spec(settings, models))
        self._store = KeyStore(settings.api_key, settings.key_file)
        self._keys: list[Key] | None = self._store.entries()
        self._nodes: dict[str, _NodeHandle] = {}
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look())

    def statuses(self) -> list[ApiNodeStatus]:
        """Of the nodes that are alive, by address."""
        found = [handle.status() for handle in self._nodes.values()]
        return sorted(found, key=lambda each: each.address)

    async def stop(self, grace: float) -> None:
        """End them all; their answers in flight have `grace` seconds."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
            self._looking = None
        handles, self._nodes = [*self._nodes.values()], {}
        await asyncio.gather(*(handle.stop(grace) for handle in handles))

    async def _look(self) -> None:
        import ray

        here = ray.get_runtime_context().get_node_id()
        while True:
            try:
                nodes = await asyncio.to_thread(ray.nodes)
            except Exception as error:  # Ray's many; the engine tells of a cluster that is lost
                LOGGER.warning("The cluster's nodes can't be listed: %s", error)
                nodes = []
            alive = {each["NodeID"]: each for each in nodes if each["Alive"]}
            for name in [name for name in self._nodes if nodes and name not in alive]:
                handle = self._nodes.pop(name)
                LOGGER.warning("The node %s is gone, and its API process.", handle.address)
                handle.forget()
            keys = self._store.entries()
            changed, self._keys = keys != self._keys, keys
            for handle in self._nodes.values() if changed else ():
                handle.take_keys(pack_keys(keys))
            for name, each in alive.items():
                if name != here and name not in self._nodes:
                    address = each["NodeManagerAddress"]
                    self._nodes[name] = _NodeHandle(name, address, self._spec, pack_keys(keys))
            await asyncio.sleep(LOOK)


class _NodeHandle:
    """One node: an actor, another when that is lost, and the last that was heard of it."""

    def __init__(self, node: str, address: str, spec: bytes, keys: bytes) -> None:
        self.address = address
        self._node = node
        self._spec = spec
        self._keys = keys
        self._heard = NodeState(-1, "starting")
        self._actor: Any = None
        self._restarts = 0  # of actors that are lost, and of what those kept
        self._tending = asyncio.create_task(self._tend())

    def status(self) -> ApiNodeStatus:
        heard = self._heard
        return ApiNodeStatus(
            node=self._node,
            address=self.address,
            host=heard.host,
            state=heard.state,
            detail=heard.detail,
            url=heard.url,
            pid=heard.pid,
            restarts=self._restarts + heard.restarts,
        )

    def take_keys(self, keys: bytes) -> None:
        self._keys = keys
        if self._actor is not None:
            self._actor.take_keys.remote(keys)

    def forget(self) -> None:
        """The node is gone."""
        self._tending.cancel()
        self._actor = None

    async def stop(self, grace: float) -> None:
        import ray

        self._tending.cancel()
        await asyncio.gather(self._tending, return_exceptions=True)
        actor, self._actor = self._actor, None
        if actor is None:
            return
        with contextlib.suppress(Exception):  # it is dead already, or can't be reached
            await asyncio.wait_for(_awaited(actor.stop.remote(grace)), grace + LAST_WORDS)
        with contextlib.suppress(Exception):
            await asyncio.to_thread(ray.kill, actor)

    async def _tend(self) -> None:
        restarts, silent = Restarts(), 0
        while True:
            seen = -1
            try:
                self._actor = await asyncio.to_thread(self._start)
                while True:
                    packed = await self._actor.state.remote(seen)
                    heard = msgspec.msgpack.decode(packed, type=NodeState)
                    if heard.version > seen:
                        seen, silent = heard.version, 0
                        self._take(heard)
            except Exception as error:  # Ray's many: the actor died, or can't be placed
                silent = silent + 1
                state = "failed" if silent >= ATTEMPTS else "restarting"
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                detail = f"Ray has lost the process that keeps it: {lines[0] if lines else error}"
                self._restarts += self._heard.restarts + (state == "restarting")
                self._take(NodeState(seen, state, detail[:300], host=self._heard.host))
                if state == "failed":
                    return
            await asyncio.sleep(max(1.0, restarts.pause_after(silent)))

    def _start(self) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from maestrale.serve.nodes.actor import ApiOnNode

        pinned = NodeAffinitySchedulingStrategy(self._node, soft=False)
        made = ray.remote(ApiOnNode).options(num_cpus=0, scheduling_strategy=pinned)
        return made.remote(__version__, self._spec, self._keys)

    def _take(self, heard: NodeState) -> None:
        before, self._heard = self._heard, heard
        if heard.state == "ready" and before.url != heard.url:
            LOGGER.info("The node %s answers at %s too.", self.address, heard.url)
        elif heard.state == "restarting":
            LOGGER.error(
                "The API process on the node %s stopped, and is started anew: %s",
                *(self.address, heard.detail),
            )
        elif heard.state == "failed":
            LOGGER.error(
                "There is no API process on the node %s: %s It is not tried again until the node "
                "joins the cluster anew or this server is started anew.",
                *(self.address, heard.detail),
            )


def node_spec(settings: Settings, models: Sequence[Settings]) -> NodeSpec:
    """What the other nodes' API processes are told: no key, and no token of the cluster's."""
    packed = tuple(pack_settings(_told(each)) for each in models)
    default_cache = settings.cache_dir == default_cache_dir()
    return NodeSpec(pack_settings(_told(settings)), packed, default_cache)


def _told(settings: Settings) -> Settings:

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else path.absolute()

    return dataclasses.replace(
        settings,
        api_nodes="this",
        ray_join=True,
        ray_token_file=None,
        api_key=(),
        key_file=None,
        made_key_file=None,
        ssl_certfile=absolute(settings.ssl_certfile),
        ssl_keyfile=absolute(settings.ssl_keyfile),
        chat_template=absolute(settings.chat_template),
        cache_dir=settings.cache_dir.absolute(),
    )


async def _awaited(response: Any) -> None:
    await response

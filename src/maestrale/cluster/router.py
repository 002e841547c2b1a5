"""The policy inside Ray Serve's router: follow the prompt's beginning, unless overloaded.

Ray's own prefix-aware router reads the text of OpenAI-shaped requests; ours goes by token ids.
`listen` names the replica that it is for; `control` goes past the choice altogether, as it must
reach a replica that drains, which Ray Serve gives no requests any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from typing import Any

from ray.exceptions import RayError
from ray.serve._private.common import RequestMetadata
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from maestrale.cluster.routing_table import RoutingTable, routing_table

REPLICAS_REMEMBERED = 4096


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray's types are not followed
    """Ray Serve makes one in each process that holds a handle of the deployment."""

    def initialize_state(self, **kwargs: Any) -> None:
        self._known: dict[str, RunningReplica] = {}
        self._metadata: RequestMetadata | None = None

    @property
    def _table(self) -> RoutingTable:
        return routing_table(self.app_name)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray Serve tells which replicas take requests: those that drain are no more among them."""
        super().update_replicas(replicas)
        self._known |= {each.replica_id.unique_id: each for each in replicas}
        while len(self._known) > REPLICAS_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._table.on_replicas(frozenset(each.replica_id.unique_id for each in replicas))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Seen here before the controller tells."""
        super().on_replica_actor_died(replica_id)
        self._table.on_replicas(frozenset(each.unique_id for each in self.curr_replicas))

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """One replica, or none for now: then Ray Serve asks again after a pause."""
        if pending_request is None:
            return []
        pending_request.routing_context.should_backoff = True
        present = {each.replica_id.unique_id: each for each in candidate_replicas}
        method, args = pending_request.metadata.call_method, pending_request.args
        chosen: Any = args[1]
        if method == "run":
            chosen = self._table.choose(args[1], frozenset(present))
        if chosen == "*":  # whichever: the first call makes Ray Serve tell us the replicas
            self._metadata = pending_request.metadata
            self._table.send = self._send
            return [candidate_replicas]
        return [[present[chosen]]] if chosen in present else []

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        if pending_request.metadata.call_method == "run":
            self._table.routed(pending_request.args[1], replica_id.unique_id)

    def _send(self, replica: str, session: str, payload: bytes) -> None:
        """From any thread. What can't be sent is lost: aborts are repeated, pings follow."""
        self._event_loop.call_soon_threadsafe(self._send_here, replica, session, payload)

    def _send_here(self, name: str, session: str, payload: bytes) -> None:
        replica = self._known.get(name)
        if replica is None or self._metadata is None:
            return
        number = uuid.uuid4().hex
        metadata = dataclasses.replace(
            self._metadata, request_id=number, internal_request_id=number
        )
        request = PendingRequest([session, name, payload], {}, metadata)
        with contextlib.suppress(RayError):
            replica.try_send_request(request, with_rejection=False)

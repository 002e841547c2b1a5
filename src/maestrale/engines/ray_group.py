"""The GPUs that Ray reserved for an engine, in the engine's own process: no worker of Ray's."""

from __future__ import annotations

from typing import Any

from maestrale.engines.base import ReservedGpus


def placement_group(reserved: ReservedGpus) -> Any:
    """Ray's handle of it. Asks Ray nothing, so that this process need not be connected."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    bundles = [dict(bundle) for bundle in reserved.bundles]
    return PlacementGroup(PlacementGroupID(bytes.fromhex(reserved.group)), bundles)

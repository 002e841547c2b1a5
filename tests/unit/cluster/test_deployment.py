"""Several models that are deployed on Ray Serve at once, without a cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from maestrale.cluster.options import ClusterOptions
from maestrale.engines.base import EngineConfig


def test_what_ray_serve_packs_is_packed_by_one_thread_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from maestrale.cluster import deployment

    targets: list[Any] = []
    monkeypatch.setattr("ray.nodes", list)
    monkeypatch.setattr("maestrale.cluster.stages.span_nodes", lambda *_: False)
    monkeypatch.setattr(deployment, "deployed", lambda _: None)
    monkeypatch.setattr(deployment, "_internal_kv_put", lambda *_, **__: None)
    monkeypatch.setattr("ray.serve.run_many", lambda new, **_: targets.extend(new))
    config = EngineConfig(engine="scripted", model_dir="")
    options = ClusterOptions(model="m", least=1, most=2)
    wanted = deployment.Deployed(api="", config=config, options=options)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: deployment.deploy(wanted), range(40)))
    assert len(targets) == 40

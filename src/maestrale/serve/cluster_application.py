"""What a RayService deploys: the replicas alone, from the settings in its `args`.

    import_path: maestrale.serve.cluster_application:build

The API processes join them (`--ray-join`); the file that says so comes from
`maestrale serve --emit-kuberay`.
"""

from __future__ import annotations

from typing import Any

NOT_HERE = "prepared-by-each-node"
"""In the place of the model's folder: no such folder, so a replica prepares the model itself."""


def build(args: dict[str, Any]) -> Any:
    """The Ray Serve application. Raises: SettingsError for what is no setting."""
    from maestrale.cluster.deployment import application
    from maestrale.config.reading import load_settings
    from maestrale.serve.hosting import cluster_options, engine_config

    # "auto": the cluster that this runs on.
    settings = load_settings({**args, "ray_address": "auto"}, {}, None)
    config = engine_config(settings, NOT_HERE)
    return application(config, cluster_options(settings, config))

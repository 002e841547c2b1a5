"""A Ray cluster's head until its standard input ends: ray_head.py FOLDER CPUS GPUS [ADDRESS]

It prints the address to join it at. Without ADDRESS it listens on loopback. Its token comes from
the environment, as that of whoever joins. The GPUs are but told to Ray.
"""

from __future__ import annotations

import logging
import os
import sys


def main() -> None:
    folder, cpus, gpus, *rest = sys.argv[1:]
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_enable_metrics_collection"] = "0"  # noqa: SIM112 - Ray's spelling
    if not rest:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    address = {"_node_ip_address": rest[0]} if rest else {}
    context = ray.init(
        address="local",
        num_cpus=int(cpus),
        num_gpus=int(gpus),
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=folder,
        **address,
    )
    print(context.address_info["gcs_address"], flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()

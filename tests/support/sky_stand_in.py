"""SkyPilot with its last step replaced: run by SkyPilot's own Python in the worker's place.

All of SkyPilot is real (parser, validation, catalogue, optimizer's offers) but what needs an
account: whether credentials work, the launch, and what the cloud does afterwards. The cloud is a
folder: a file for each machine in it. `STAND_IN` is JSON: {folder, login, fail}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SETTINGS = json.loads(os.environ["STAND_IN"])
CLOUD = Path(SETTINGS["folder"])
FAIL = SETTINGS.get("fail", "")


def load_worker(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("pilot_worker", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def handle_of(name: str, resources: Any) -> SimpleNamespace:
    login = SETTINGS["login"]
    return SimpleNamespace(
        head_ip=login["host"],
        head_ssh_port=login["port"],
        ssh_user=login["user"],
        docker_user=None,
        cluster_yaml=str(CLOUD / f"{name}.cluster"),
        launched_resources=resources,
    )


def launch(task: Any, cluster_name: str, **options: Any) -> tuple[None, Any]:
    from sky import exceptions

    with (CLOUD / "launches").open("a") as file:
        file.write(json.dumps({"name": cluster_name, "secrets": sorted(task.secrets)}) + "\n")
    resources = next(iter(task.resources))
    if FAIL == "slow":
        (CLOUD / cluster_name).write_text("INIT")
        (CLOUD / "launching").touch()
        time.sleep(600)
    if FAIL in ("capacity", "quota"):
        said = {
            "capacity": "Out of capacity for A5000 in East Coast (NY2).",
            "quota": "QuotaExceeded: GPUS_ALL_REGIONS. Limit: 0.0 globally.",
        }[FAIL]
        raise exceptions.ResourcesUnavailableError("Failed to provision.").with_failover_history(
            [RuntimeError(said)]
        )
    (CLOUD / cluster_name).write_text("UP")
    (CLOUD / f"{cluster_name}.resources").write_text(json.dumps(resources.to_yaml_config()))
    return None, handle_of(cluster_name, resources)


def main() -> None:
    import sky
    from sky import check as sky_check
    from sky import core, exceptions, execution
    from sky.backends import backend_utils
    from sky.utils import status_lib

    worker = load_worker(sys.argv[1])
    login = SETTINGS["login"]

    def down(name: str) -> None:
        if not (CLOUD / name).exists():
            raise exceptions.ClusterDoesNotExist(name)
        if FAIL == "down":
            raise RuntimeError("the API answers 500")
        (CLOUD / name).unlink()

    def status(names: list[str], refresh: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "status": status_lib.ClusterStatus((CLOUD / name).read_text()),
                "handle": handle_of(name, None),
            }
            for name in names
            if (CLOUD / name).exists()
        ]

    def start(name: str) -> None:
        (CLOUD / name).write_text("UP")

    def handle_from_name(name: str) -> Any:
        config = json.loads((CLOUD / f"{name}.resources").read_text())
        return handle_of(name, next(iter(sky.Resources.from_yaml_config(config))))

    def refuses(request: Any) -> dict[str, Any]:
        why = "Credentials not found" if FAIL == "credentials" else None
        return dict.fromkeys(request["clouds"], why)

    execution.launch = launch
    core.down, core.status, core.start = down, status, start
    core.stop = lambda name: (CLOUD / name).write_text("STOPPED")
    sky.global_user_state.get_handle_from_cluster_name = handle_from_name
    sky_check.check_capability = lambda *a, **k: {"default": k["clouds"]}
    backend_utils.ssh_credential_from_yaml = lambda *a: {
        "ssh_user": login["user"],
        "ssh_private_key": login["identity"],
    }
    worker.ACTIONS["credentials"] = refuses
    if FAIL == "dies":
        os._exit(3)
    worker.main()


if __name__ == "__main__":
    main()

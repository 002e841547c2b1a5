"""Asks SkyPilot itself, with its own Python: prints JSON for tests/unit/machine/cloud/test_sky.py.

argv: the worker's file, and a folder with task files, each for one of our clouds.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import sky
from sky import check as sky_check
from sky import optimizer
from sky.clouds import CloudImplementationFeatures as Features
from sky.provision.paperspace import utils as paperspace
from sky.utils import dag_utils, registry

NAMES = ("paperspace", "do", "lambda", "aws", "gcp", "azure", "runpod", "kubernetes")


def abilities(worker: Any) -> dict[str, dict[str, bool]]:
    """What SkyPilot says that each cloud can't."""
    found = {}
    for name in NAMES:
        cloud = registry.CLOUD_REGISTRY.from_str(name)
        lacks = cloud._unsupported_features_for_resources(sky.Resources(cloud=cloud))
        found[name] = {
            "spot": Features.SPOT_INSTANCE not in lacks,
            "image": Features.IMAGE_ID not in lacks,
            "stops": Features.STOP not in lacks,
        }
    return found


def optimized(folder: Path) -> dict[str, dict[str, Any]]:
    """What SkyPilot's optimizer makes of each task file, with all clouds enabled."""
    enabled = [registry.CLOUD_REGISTRY.from_str(name) for name in NAMES]
    sky_check.get_cached_enabled_clouds_or_refresh = lambda *a, **k: enabled
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        config = {**sky.utils.yaml_utils.read_yaml(str(path)), "secrets": {}}
        dag = dag_utils.convert_entrypoint_to_dag(sky.Task.from_yaml_config(config))
        best = optimizer.Optimizer.optimize(dag, quiet=True).tasks[0].best_resources
        found[path.stem] = {
            "cloud": str(best.cloud).lower(),
            "region": best.region,
            "instance": best.instance_type,
            "price": best.get_cost(3600),
            "spot": best.use_spot,
        }
    return found


def asked_of_paperspace(worker: Any) -> list[dict[str, Any]]:
    """The bodies that SkyPilot's own client sends to Paperspace for a machine."""
    bodies: list[dict[str, Any]] = []

    class Api(BaseHTTPRequestHandler):
        def answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            if self.command == "POST" and self.path == "/machines":
                bodies.append(json.loads(self.rfile.read(size)))
            self.send_response(200)
            self.end_headers()
            items = [{"id": "script1", "name": "sky-add-key"}]
            self.wfile.write(json.dumps({"items": items, "hasMore": False}).encode())

        do_GET = do_POST = answer

        def log_message(self, *words: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        paperspace.API_ENDPOINT = f"http://127.0.0.1:{server.server_port}"
        key = Path.home() / ".paperspace" / "config.json"
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_text('{"apiKey": "k"}')
        client = paperspace.PaperspaceCloudClient()
        request = ("box-head", "A5000", "net1", "East Coast (NY2)", 100)
        client.launch(*request)
        worker.prepare_paperspace("static", "t0abc")
        client.launch(*request)
        server.shutdown()
    return bodies


def main() -> None:
    spec = importlib.util.spec_from_file_location("pilot_worker", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    rows = json.loads((Path(sys.argv[2]) / "rows.json").read_text())
    for cloud, added in rows.items():
        worker.add_rows(cloud, added)
    found = {
        "abilities": abilities(worker),
        "optimized": optimized(Path(sys.argv[2])),
        "asked": asked_of_paperspace(worker),
        "version": sky.__version__,
    }
    print("\n" + json.dumps(found))


main()

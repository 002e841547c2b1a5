"""Runs SkyPilot, in SkyPilot's own environment, so it imports no maestrale. `pilot.py` starts it.

Requests and answers are JSON, one a line: `{"do": NAME, ...}` in, `{"ok": ...}` or
`{"failed": KIND, "why": TEXT}` out. What SkyPilot prints goes to standard error. It is called in
this process, through the functions that its API server calls: no server is started, none is left.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

Request = dict[str, Any]


class CallFailed(Exception):
    """An answer that is a failure: its kind, and why."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind
        self.why = why


def check(request: Request) -> object:
    """What SkyPilot's parser makes of a task file: `yaml` is its path."""
    for cloud, rows in request.get("rows", {}).items():
        add_rows(cloud, rows)
    task = read_task(request)
    task.validate()
    return [one.to_yaml_config() for one in task.resources]


def read_task(request: Request) -> Any:
    """The task of the file `yaml`, with values for the `secrets` that it names only."""
    import sky
    from sky.utils import yaml_utils

    config = yaml_utils.read_yaml(request["yaml"])
    given = [(name, value) for name, value in request.get("secrets", [])]
    return sky.Task.from_yaml_config(config, secrets_overrides=given if given else None)


def offers(request: Request) -> object:
    """Every machine of the clouds that fits, with its price in dollars an hour."""
    found: list[dict[str, Any]] = []
    problems: dict[str, dict[str, str]] = {}
    for cloud in request["clouds"]:
        try:
            found += _offers_of(cloud, request)
        except CallFailed as error:
            problems[cloud] = {"kind": error.kind, "why": error.why}
        except (Exception, SystemExit) as error:
            failed = classify(error)
            problems[cloud] = {"kind": failed.kind, "why": failed.why}
    found.sort(key=lambda one: (one["price"], one["cloud"], one["region"]))
    return {"offers": found, "problems": problems}


def _offers_of(cloud: str, request: Request) -> list[dict[str, Any]]:
    import sky
    from sky.utils import resources_utils

    add_rows(cloud, request.get("rows", {}).get(cloud, []))
    wanted = sky.Resources(
        infra=f"{cloud}/{request['region']}" if request["region"] else cloud,
        accelerators={request["gpu"]: request["count"]} if request["gpu"] else None,
        disk_size=request["disk"],
        use_spot=request["spot"],
    )
    wanted.validate()
    feasible = wanted.cloud.get_feasible_launchable_resources(wanted, 1)
    if not feasible.resources_list:
        close = ", ".join(feasible.fuzzy_candidate_list)
        hint = f" {feasible.hint}" if feasible.hint else ""
        raise CallFailed("no-offer", (f"close to it: {close}." if close else "") + hint)
    rows = []
    for kind in feasible.resources_list:
        for one in resources_utils.make_launchables_for_valid_region_zones(kind):
            cpus, memory = one.cloud.get_vcpus_mem_from_instance_type(one.instance_type)
            rows.append(
                {
                    "cloud": cloud,
                    "region": one.region or "",
                    "instance": one.instance_type,
                    "gpu": request["gpu"],
                    "count": request["count"] if request["gpu"] else 0,
                    "cpus": cpus,
                    "memory": memory,
                    "spot": bool(one.use_spot),
                    "price": one.get_cost(3600),
                }
            )
    # A zone each: the same machine of one region once.
    return list({(row["region"], row["instance"]): row for row in reversed(rows)}.values())


def add_rows(cloud: str, rows: list[dict[str, Any]]) -> None:
    """Machines that the cloud has and SkyPilot's catalogue lacks. SkyPilot leaves a file that was
    changed by hand alone."""
    if not rows:
        return
    from sky.catalog import common
    from sky.utils import annotations

    lazy = importlib.import_module(f"sky.catalog.{cloud}_catalog")._df
    there = set(map(tuple, lazy[["InstanceType", "Region"]].to_numpy().tolist()))
    new = [row for row in rows if (row["InstanceType"], row["Region"]) not in there]
    if not new:
        return
    path = common.get_catalog_path(f"{cloud}/vms.csv")
    with open(path, encoding="utf-8", newline="") as file:
        known = csv.DictReader(file)
        lines = [*known, *new]
        columns = list(known.fieldnames or ())
    with open(f"{path}.new", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    os.replace(f"{path}.new", path)
    lazy._df = None
    annotations.clear_request_level_cache()


def credentials(request: Request) -> dict[str, str | None]:
    """For each cloud: null where its credentials work, else why they don't."""
    from sky.clouds import cloud as cloud_lib
    from sky.utils import registry

    answers: dict[str, str | None] = {}
    for name in request["clouds"]:
        try:
            cloud = registry.CLOUD_REGISTRY.from_str(name)
            works, why = cloud.check_credentials(cloud_lib.CloudCapability.COMPUTE)
            answers[name] = None if works else _plain(str(why or "no reason given"))
        except (Exception, SystemExit) as error:
            answers[name] = _plain(f"{type(error).__name__}: {error}")
    return answers


def launch(request: Request) -> object:
    """Bring up the machine of a task file. Going on with one that is half up is the same call."""
    from sky import check as sky_check
    from sky import execution
    from sky.clouds import cloud as cloud_lib

    name, cloud = request["name"], request["cloud"]
    add_rows(cloud, request.get("rows", {}).get(cloud, []))
    if cloud == "paperspace":
        prepare_paperspace(request.get("address", "static"), request.get("template", ""))
    # SkyPilot launches only on clouds that it has found to be usable, and remembers.
    compute = cloud_lib.CloudCapability.COMPUTE
    try:
        enabled = sky_check.check_capability(compute, quiet=True, clouds=[cloud])
    except SystemExit:
        enabled = {}
    if not any(enabled.values() if isinstance(enabled, dict) else enabled):
        raise CallFailed("credentials", credentials({"clouds": [cloud]})[cloud] or "not enabled")
    task = read_task(request)
    _, handle = execution.launch(task, cluster_name=name, stream_logs=False, _quiet_optimizer=True)
    if handle is None:
        raise CallFailed("other", "SkyPilot gave no machine back.")
    return describe(handle)


def describe(handle: Any) -> dict[str, Any]:
    """Where the machine is and how to log in."""
    from sky.backends import backend_utils

    login = backend_utils.ssh_credential_from_yaml(
        handle.cluster_yaml, handle.docker_user, handle.ssh_user
    )
    resources = handle.launched_resources
    return {
        "host": handle.head_ip,
        "port": int(handle.head_ssh_port or 22),
        "user": login.get("docker_user") or login.get("ssh_user") or "root",
        "identity": os.path.expanduser(login.get("ssh_private_key") or ""),
        "proxy": login.get("ssh_proxy_command") or "",
        "cloud": str(resources.cloud).lower(),
        "region": resources.region or "",
        "instance": resources.instance_type or "",
        "price": resources.get_cost(3600),
    }


def status(request: Request) -> object:
    """For each name the state that the cloud says: UP, STOPPED, INIT ..., or null for none."""
    from sky import core

    states: dict[str, Any] = dict.fromkeys(request["names"])
    if not request["names"]:
        return states
    from sky.utils import common

    for record in core.status(request["names"], refresh=common.StatusRefreshMode.AUTO):
        handle = record["handle"]
        host = getattr(handle, "head_ip", None) or ""
        states[record["name"]] = {"state": record["status"].value, "host": host}
    return states


def down(request: Request) -> object:
    """Delete the machine with its disk."""
    from sky import core, exceptions

    try:
        core.down(request["name"])
    except exceptions.ClusterDoesNotExist:
        return False
    return True


def stop(request: Request) -> object:
    """Stop the machine; its disk stays."""
    from sky import core

    core.stop(request["name"])
    return True


def start(request: Request) -> object:
    """Start a stopped machine."""
    from sky import core, global_user_state

    core.start(request["name"])
    return describe(global_user_state.get_handle_from_cluster_name(request["name"]))


def prepare_paperspace(address: str, template: str) -> None:
    """Let SkyPilot's request for a machine carry our address type and template.

    SkyPilot asks for a dynamic address, and knows templates for a few machine types only (none
    for the A5000): both are fields of the same request.
    """
    from sky.provision.paperspace import utils

    if getattr(utils, "asked_by_maestrale", False):
        return
    original = utils._try_request_with_backoff

    def request(method: str, url: str, headers: dict[str, str], data: Any = None) -> Any:
        if method == "post" and url.endswith("/machines"):
            body = json.loads(data)
            body["publicIpType"] = address
            if template:
                body["templateId"] = template
            data = json.dumps(body)
        return original(method, url, headers, data)

    utils._try_request_with_backoff = request
    utils.asked_by_maestrale = True


_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# What clouds say, in their own words, and what it comes to.
_SAID = (
    ("quota", r"quota|limit ?exceeded|service limit|vcpulimit|exceed.{0,20}limit"),
    ("capacity", r"capacity|insufficient|out of stock|not available in|no longer any instances"),
    ("capacity", r"ZONE_RESOURCE_POOL_EXHAUSTED|SkuNotAvailable|currently unavailable"),
    (
        "credentials",
        r"unauthori[sz]ed|authentication|invalid (api )?key|no credentials|access denied|401|403",
    ),
    ("network", r"ConnectionError|Max retries|Name or service not known|timed out|ConnectTimeout"),
)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", _COLOURS.sub("", text)).strip()


def classify(error: BaseException) -> CallFailed:
    """SkyPilot's exception as one of our kinds."""
    if isinstance(error, CallFailed):
        return error
    name = type(error).__name__
    history = [str(one) for one in getattr(error, "failover_history", None) or ()]
    text = _plain("; ".join([str(error), *history]))
    if name == "NoCloudAccessError":
        return CallFailed("credentials", text)
    if name == "ResourcesUnavailableError" and not history:
        return CallFailed("no-offer", text)
    if name == "ResourcesMismatchError":
        return CallFailed("mismatch", text)
    if isinstance(error, ImportError):
        return CallFailed("missing", f"the module {error.name} is not installed")
    if name in ("InvalidSkyPilotConfigError", "InvalidTaskYAMLError", "ValueError"):
        return CallFailed("invalid", text)
    for kind, pattern in _SAID:
        if re.search(pattern, f"{name} {text}", re.IGNORECASE):
            return CallFailed(kind, text)
    if name == "ResourcesUnavailableError":
        return CallFailed("capacity", text)
    return CallFailed("other", f"{name}: {text}")


ACTIONS: dict[str, Callable[[Request], object]] = {
    "check": check,
    "offers": offers,
    "credentials": credentials,
    "launch": launch,
    "status": status,
    "down": down,
    "stop": stop,
    "start": start,
}


def answer(request: Request) -> dict[str, object]:
    try:
        return {"ok": ACTIONS[request["do"]](request)}
    except KeyboardInterrupt:
        return {"failed": "interrupted", "why": "interrupted"}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        failed = classify(error)
        return {"failed": failed.kind, "why": failed.why}


def main() -> None:
    """Answer requests until standard input ends."""
    # Whatever prints to standard output, also a child, must not get among the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for line in sys.stdin:
            out.write(json.dumps(answer(json.loads(line)), default=str) + "\n")
            out.flush()


if __name__ == "__main__":
    main()

"""The task file that SkyPilot gets: text first, so that `--dry-run` prints what is used."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from maestrale.machine.cloud.machine_spec import MachineSpec
from maestrale.machine.cloud.offers import Offer
from maestrale.machine.cloud.providers import PROVIDERS

PORT = 8000  # of the service, on the machine's loopback
KEY = "MAESTRALE_API_KEY"
# Longest time until the service answers for the first time: set-up, image, model.
FIRST_ANSWER_MINUTES = 120

_WATCH = """\
# Ends when there was no request for {minutes} minutes: SkyPilot stops a machine without jobs.
# Before its first answer the service has {first} minutes.
still=0 before= ever=
while [ "$still" -lt "$([ -n "$ever" ] && echo {minutes} || echo {first})" ]; do
    sleep 60
    now=$(printf 'header = "Authorization: Bearer %s"\\n' "$MAESTRALE_API_KEY" |
        curl --silent --fail --max-time 20 --config - http://127.0.0.1:{port}/metrics |
        grep -E '^(http_requests_total|vllm:generation_tokens_total)') || now=
    if [ -n "$now" ] && [ -z "$ever" ]; then ever=yes still=0; fi
    if [ -n "$now" ] && [ "$now" != "$before" ]; then still=0; else still=$((still + 1)); fi
    before=$now
done
"""

# In the image that docs/guide/create.md makes of ours. Containers start as root there; the service
# gives that up.
_SERVE = """\
export PATH=/opt/maestrale/bin:/opt/venv/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PYTHONPATH=/opt/maestrale HOME=/data XDG_CACHE_HOME=/data/cache XDG_CONFIG_HOME=/data/config
export HF_HOME=/data/huggingface MAESTRALE_HOST=127.0.0.1
cd /data
exec setpriv --reuid 10001 --regid 10001 --clear-groups \\
    tini -s -- python -P -m maestrale.cli.container --port {port}{model}
"""


def task_yaml(spec: MachineSpec, offer: Offer, *, image: str = "") -> str:
    """The whole file. `image`: the container image, for clouds that run containers."""
    cloud = PROVIDERS[offer.cloud]
    resources: dict[str, object] = {
        "infra": f"{offer.cloud}/{offer.region}" if offer.region else offer.cloud
    }
    if offer.instance:
        resources["instance_type"] = offer.instance
    if offer.gpu:
        resources["accelerators"] = {offer.gpu: offer.count}
    if cloud.name != "kubernetes":
        resources["disk_size"] = spec.disk
    if spec.spot:
        resources["use_spot"] = True
    if cloud.container:
        resources["image_id"] = f"docker:{image}"
    elif spec.image and cloud.name != "paperspace":
        resources["image_id"] = spec.image
    if spec.domain:
        resources["ports"] = [80, 443]
    if spec.autostop:
        stop = {"idle_minutes": 1, "wait_for": "jobs", "down": deletes(spec, offer)}
        resources["autostop"] = stop
    task: dict[str, object] = {"name": spec.name, "resources": resources}
    run = ""
    if cloud.container:
        model = f" --model {shlex.quote(spec.model)}" if spec.model else ""
        run = _SERVE.format(port=PORT, model=model)
        if spec.autostop:
            watch = _WATCH.format(minutes=spec.autostop, first=FIRST_ANSWER_MINUTES, port=PORT)
            run = f"(\n{run.rstrip()}\n) & service=$!\n{watch}kill $service\n"
    elif spec.autostop:
        run = _WATCH.format(minutes=spec.autostop, first=FIRST_ANSWER_MINUTES, port=PORT)
    if run:
        # Given when it is launched; the file doesn't hold it.
        task["secrets"] = {KEY: None}
        task["run"] = run
    if cloud.name == "kubernetes":
        root = {"spec": {"securityContext": {"runAsUser": 0}}}
        task["config"] = {"kubernetes": {"pod_config": root}}
    return to_yaml(task)


def deletes(spec: MachineSpec, offer: Offer) -> bool:
    """Whether autostop deletes: clouds that can't stop a machine, and spot machines."""
    return spec.spot or not PROVIDERS[offer.cloud].stops


def notes(spec: MachineSpec, offer: Offer) -> list[str]:
    """What of the request the task file can't say."""
    said = []
    if offer.cloud == "paperspace":
        template = spec.image or "Ubuntu 22.04 (the newest such template for this machine type)"
        said.append(f"Asked of Paperspace beside it: a static address; template: {template}.")
    if spec.domain:
        said.append(f"HTTPS: {spec.domain} must point to the machine's address.")
    return said


def to_yaml(value: Mapping[str, object], indent: str = "") -> str:
    """Block style for mappings and texts of several lines, JSON (which is YAML) for the rest."""
    lines = []
    for key, one in value.items():
        if isinstance(one, Mapping) and one:
            lines.append(f"{indent}{key}:\n{to_yaml(one, indent + '  ')}")
        elif isinstance(one, str) and "\n" in one:
            body = "".join(f"{indent}  {line}".rstrip() + "\n" for line in one.splitlines())
            lines.append(f"{indent}{key}: |\n{body}")
        else:
            lines.append(f"{indent}{key}: {json.dumps(one, ensure_ascii=False)}\n")
    return "".join(lines)

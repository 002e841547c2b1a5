"""The end of a set-up: a container that sees the GPU, or the cpu image that answers."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from maestrale.errors import DiskFull, NoNetwork, ProofFailed
from maestrale.machine import source as sources
from maestrale.machine.processes import Completed
from maestrale.machine.setup.run import SetupReport
from maestrale.machine.source import Source, Staged
from maestrale.machine.target import Target

# What the image is built from: small, and wanted on the machine anyway.
BASE_IMAGE = "debian:12.12-slim"
BUILD_SECONDS = 3600.0  # the cuda image is several gigabytes
ANSWER_SECONDS = 180.0

# Runs in the container, with its Python: asks one question as a client would.
_QUESTION = """
import json, urllib.request as web
from pathlib import Path
try:
    key = Path("/data/api-key").read_text().strip()
except OSError:
    key = "none"
def ask(path, body=None):
    head = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    with web.urlopen(web.Request("http://127.0.0.1:8000" + path, data, head), timeout=60) as reply:
        return json.load(reply)
model = ask("/v1/models")["data"][0]["id"]
body = {"model": model, "max_tokens": 8, "temperature": 0,
        "messages": [{"role": "user", "content": "Say hello."}]}
text = ask("/v1/chat/completions", body)["choices"][0]["message"]["content"]
print(model + ": " + " ".join(text.split()))
"""


def prove(
    target: Target,
    source: Source | None,
    *,
    gpu: bool,
    report: SetupReport,
    build_arguments: dict[str, str] | None = None,
) -> str:
    """Run the container, and give what it proves as a sentence.

    With a GPU and no source a small public image does. Raises: ProofFailed, DiskFull, NoNetwork;
    SourceError.
    """
    _check_daemon(target)
    if gpu and source is None:
        image = BASE_IMAGE
    else:
        kind: sources.ImageTarget = "cuda" if gpu else "cpu"
        image = provide_image(
            target,
            source if source is not None else Source.parse(None),
            kind,
            report=report,
            build_arguments=build_arguments,
        )
    return _sees_gpu(target, image) if gpu else _answers(target, image)


def provide_image(
    target: Target,
    source: Source,
    kind: sources.ImageTarget,
    *,
    report: SetupReport,
    build_arguments: dict[str, str] | None = None,
) -> str:
    """Have the image on the machine: pulled, or built there from what is staged here.

    Gives its name. Raises: SourceError, ProofFailed, DiskFull, NoNetwork.
    """
    with tempfile.TemporaryDirectory(prefix="maestrale-stage-") as folder:
        staged = source.stage(Path(folder))
        if staged.image is not None:
            report.note(f"fetching the image {staged.image} ...")
            quoted = shlex.quote(staged.image)
            script = (
                f"docker image inspect {quoted} >/dev/null 2>&1 || docker pull --quiet {quoted}"
            )
            done = target.run(script, as_root=True, timeout=BUILD_SECONDS)
            _check(done, target, f"the image {staged.image} can't be fetched")
            return staged.image
        return _build(target, staged, kind, report, build_arguments)


def _build(
    target: Target,
    staged: Staged,
    kind: sources.ImageTarget,
    report: SetupReport,
    build_arguments: dict[str, str] | None,
) -> str:
    assert staged.context is not None
    name = staged.tag(kind)
    report.note(f"building the image {name} on {target.name} ...")
    there = target.run("mktemp -d /var/tmp/maestrale-XXXXXXXX").stdout.strip()
    try:
        target.copy_to(staged.context, there)
        command = sources.build_command(there, kind, name, arguments=build_arguments)
        script = f"DOCKER_BUILDKIT=1 {shlex.join(command)}"
        done = target.run(script, as_root=True, timeout=BUILD_SECONDS)
        _check(done, target, f"the image {name} can't be built")
    finally:
        target.run(f"rm -rf {shlex.quote(there)}")
    return name


def _check_daemon(target: Target) -> None:
    done = target.run("docker info >/dev/null", as_root=True, timeout=30.0)
    if not done.ok:
        raise ProofFailed(
            f"Docker is installed on {target.name}, and does not run: "
            f"{_last(done)}\n'systemctl status docker' there tells more. Where nothing starts "
            "services (a chroot, a container), start dockerd yourself, or leave the proof out: "
            "--no-proof."
        )


def _sees_gpu(target: Target, image: str) -> str:
    command = f"docker run --rm --gpus all --entrypoint nvidia-smi {shlex.quote(image)} -L"
    done = target.run(command, as_root=True, timeout=600.0)
    _check(done, target, "no container sees the GPU")
    names = [line.split(" (UUID")[0].partition(": ")[2] for line in done.stdout.splitlines()]
    seen = ", ".join(name for name in names if name)
    if not seen:
        raise ProofFailed(f"On {target.name} nvidia-smi runs in a container, and lists no GPU.")
    return f"a container sees {seen}."


def _answers(target: Target, image: str) -> str:
    started = target.run(f"docker run -d --rm {shlex.quote(image)}", as_root=True, timeout=120.0)
    _check(started, target, f"{image} can't be started")
    container = started.stdout.strip().splitlines()[-1]
    try:
        ask = f"docker exec -i {container} python -"
        done = _until_it_answers(
            lambda: target.run(ask, input=_QUESTION, as_root=True, timeout=90.0)
        )
        if not done.ok:
            log = target.run(f"docker logs --tail 5 {container} 2>&1", as_root=True)
            raise ProofFailed(
                f"On {target.name} the image {image} runs, and gives no answer: {_last(done)}\n"
                f"{log.stdout.strip()[-600:]}"
            )
    finally:
        target.run(f"docker stop {container}", as_root=True)
    return f"the image {image} answers ({done.stdout.strip()[:80]})."


def _until_it_answers(ask: Callable[[], Completed]) -> Completed:
    ends = time.monotonic() + ANSWER_SECONDS
    while True:
        done = ask()
        if done.ok or time.monotonic() > ends or "No such container" in done.stderr:
            return done
        time.sleep(1.0)


def _check(done: Completed, target: Target, problem: str) -> None:
    """Raises: ProofFailed, or the kind that the output tells of."""
    if done.ok:
        return
    said = f"{done.stdout}\n{done.stderr}"
    told = f"On {target.name} {problem}: {_last(done)}"
    if "no space left on device" in said.lower():
        raise DiskFull(f"{told}\nThe disk is full: make room or enlarge it, then run this again.")
    if any(word in said for word in ("no such host", "i/o timeout", "connection refused")):
        raise NoNetwork(f"{told}\nHas the machine a network? Then run this again.")
    raise ProofFailed(f"{told}\nAll packages are installed; 'maestrale doctor' looks at the rest.")


def _last(done: Completed) -> str:
    lines = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
    return lines[-1][:300]

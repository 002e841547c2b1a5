"""The image: built on a Debian of the public base's name, run, asked, stopped, started again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gist
from docker_engine import Engine, debian, docker_engine
from maestrale.errors import ProofFailed
from maestrale.machine.setup.proof import prove
from maestrale.machine.setup.run import StepOutcome
from maestrale.machine.source import Source, build_command
from maestrale.machine.target import Target
from serving import ROOT, clean_environment, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CPU_LIMIT = 700_000_000  # bytes
# What a build behind a proxy or a mirror needs to be told.
BUILD_ARGUMENTS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class Silent:
    """A report that nobody reads."""

    def note(self, line: str) -> None: ...

    def begin(self, doing: str) -> None: ...

    def end(self, outcome: StepOutcome) -> None: ...


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with docker_engine() as running:
        yield running


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The cpu image of this checkout."""
    base = base_name()
    engine.import_base(base, debian())
    context = tmp_path_factory.mktemp("image") / "context"
    staged = Source.parse(str(ROOT)).stage(context)
    if CERTIFICATES.is_file():
        shutil.copy(CERTIFICATES, context)
    arguments = {name: os.environ[name] for name in BUILD_ARGUMENTS if os.environ.get(name)}
    arguments["VERSION"] = staged.version
    tag = staged.tag("cpu")
    command = build_command(context, "cpu", tag, arguments=arguments)
    built = engine.start(*command[1:2], "--network", "host", *command[2:], timeout=850)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return tag


def base_name() -> str:
    found = re.search(r"^ARG BASE=(\S+)$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.M)
    assert found
    return found[1]


class Container:
    """A running container; `url` is where it is published."""

    def __init__(self, engine: Engine, name: str, port: int) -> None:
        self.engine = engine
        self.name = name
        self.url = f"http://127.0.0.1:{port}"

    def log(self) -> str:
        done = self.engine.start("logs", self.name)
        return done.stdout + done.stderr

    def key(self) -> str:
        keys = set(re.findall(r"API key \(kept in /data/api-key\): (\S+)", self.log()))
        assert len(keys) == 1, self.log()
        key: str = keys.pop()
        return key

    def inspect(self, form: str) -> Any:
        return json.loads(
            self.engine.docker("inspect", "--format", f"{{{{json {form}}}}}", self.name)
        )

    def wait(self, timeout: float = 200.0) -> None:
        deadline = time.monotonic() + timeout
        while self.engine.start("exec", self.name, *HEALTH).returncode != 0:
            assert self.inspect(".State.Running"), self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.3)

    def ask(self, body: dict[str, Any], key: str) -> dict[str, Any]:
        sent = json.dumps({"model": gist.NAME, **body}).encode()
        return self.get("/v1/chat/completions", key, sent)

    def get(self, path: str, key: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.url + path, body, headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


HEALTH = ("python", "-P", "-m", "maestrale.cli.container", "health")
HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "seed": 1}


@pytest.fixture(scope="module")
def publishes(engine: Engine, image: str) -> bool:
    """Whether a published port is reached: some machines have no bridge that carries packets."""
    if not engine.bridge:
        return False
    port = free_port()
    listen = ("--publish", f"127.0.0.1:{port}:8000", "--entrypoint", "python", image)
    engine.docker("run", "--detach", "--rm", "--name", "probe", *listen, "-m", "http.server")
    try:
        return is_answered(f"http://127.0.0.1:{port}/")
    finally:
        engine.start("kill", "probe")


def is_answered(url: str) -> bool:
    """Whether anything is said there within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def container(engine: Engine, image: str, publishes: bool) -> Iterator[Container]:
    """As the gist runs it, but for the GPU and the name's weights; read-only, with a volume."""
    port = free_port()
    published = ("--publish", f"127.0.0.1:{port}:8000")
    network, inside = (published, 8000) if publishes else (("--network", "host"), port)
    locked: tuple[str, ...] = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")
    locked += ("--security-opt", "no-new-privileges", "--volume", "kept:/data")
    token = ("-e", "HF_TOKEN=hf_unused")
    serve = ("--host", "0.0.0.0", "--port", str(inside), "--served-model-name", gist.NAME)
    options = ("--detach", "--name", "gist", *network, *locked, *token)
    engine.docker("run", *options, image, *serve)
    running = Container(engine, "gist", port)
    running.wait()
    yield running
    engine.start("rm", "--force", "--volumes", running.name)


def test_its_size_user_and_labels(engine: Engine, image: str) -> None:
    config = json.loads(engine.docker("image", "inspect", image))[0]
    assert config["Size"] <= CPU_LIMIT
    assert config["Config"]["User"] == "10001:10001"
    labels = config["Config"]["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.base.name"] == base_name()
    assert re.fullmatch(r"\d+\.\d+\.\d+", labels["org.opencontainers.image.version"])
    # Nothing of how the build reached its index is in the image.
    history = engine.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert "PIP_" not in history
    assert "PIP_" not in json.dumps(config["Config"]["Env"])


def test_the_gists_request_word_for_word(container: Container, engine: Engine) -> None:
    answer = gist.post(container.url, container.key())
    assert answer["model"] == gist.NAME
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert answer["choices"][0]["message"]["content"].strip()
    assert container.inspect(".Config.User") == "10001:10001"


def test_verify_passes_from_outside(container: Container) -> None:
    command = [sys.executable, "-m", "maestrale", "verify", container.url]
    done = subprocess.run(
        [*command, "--api-key", container.key()],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_other_commands_run_too(engine: Engine, image: str) -> None:
    assert engine.docker("run", "--rm", image, "--version").startswith("maestrale ")
    helped = engine.docker(
        "run", "--rm", "--read-only", "--user", "12345", image, "verify", "--help"
    )
    assert "collection" in helped
    wrong = engine.start("run", "--rm", image, "--max-num-seq", "x")
    assert wrong.returncode == 2
    assert "--max-num-seqs" in wrong.stderr


def test_stop_lets_answers_end_and_a_restart_keeps_the_key(container: Container) -> None:
    key = container.key()
    before = container.ask(HELLO, key)["choices"]
    answers: list[dict[str, Any]] = []
    long = {**HELLO, "max_tokens": 300, "ignore_eos": True}
    asking = threading.Thread(target=lambda: answers.append(container.ask(long, key)))
    asking.start()
    deadline = time.monotonic() + 60
    while container.get("/load", key) != {"server_load": 1}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    container.engine.docker("stop", container.name)
    asking.join(60)
    assert answers, container.log()
    assert answers[0]["usage"]["completion_tokens"] == 300
    assert container.inspect(".State.ExitCode") == 0
    assert not container.inspect(".State.OOMKilled")
    container.engine.docker("start", container.name)
    container.wait()
    assert container.key() == key
    assert container.ask(HELLO, key)["choices"] == before


def test_without_any_network(engine: Engine, image: str) -> None:
    """Only the bundled model: nothing is fetched, nothing compiled."""
    engine.docker("run", "--detach", "--name", "alone", "--network", "none", image)
    try:
        alone = Container(engine, "alone", 0)
        alone.wait()
        request = (
            "import json, sys, urllib.request as u; "
            "r = u.Request('http://127.0.0.1:8000/v1/chat/completions', sys.argv[1].encode(), "
            "{'Content-Type': 'application/json', 'Authorization': 'Bearer ' + sys.argv[2]}); "
            "print(json.load(u.urlopen(r))['choices'][0]['message']['content'])"
        )
        body = json.dumps({"model": "smollm2-135m-instruct", **HELLO})
        said = engine.docker("exec", "alone", "python", "-c", request, body, alone.key())
        assert said
        log = alone.log()
        assert "Converting" not in log
        assert "C++ compiler" not in log
        assert "Traceback" not in log
        assert alone.inspect(".State.Health.Status") in ("healthy", "starting")
        # What it keeps is in the volume; the model's weights stay in the image.
        size = engine.docker("exec", "alone", "du", "-sk", "/data").split()[0]
        assert int(size) < 1000
    finally:
        engine.start("rm", "--force", "--volumes", "alone")


def test_setup_takes_its_answer_for_proof(
    engine: Engine, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in engine.environment().items():
        monkeypatch.setenv(name, value)
    report = Silent()
    before = engine.docker("ps", "--quiet")
    proof = prove(Target.parse(None), Source("image", image), gpu=False, report=report)
    assert re.fullmatch(
        rf"the image {re.escape(image)} answers \(smollm2-135m-instruct: .+\)\.", proof
    )
    assert engine.docker("ps", "--quiet") == before
    with pytest.raises(ProofFailed, match="no container sees the GPU"):
        prove(Target.parse(None), Source("image", image), gpu=True, report=report)


def test_a_volume_it_cannot_write(engine: Engine, image: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    refused = engine.start("run", "--rm", "--volume", f"{tmp_path}:/data", image)
    assert refused.returncode == 1
    assert "/data can't be written by user 10001" in refused.stderr
    assert "sudo chown -R 10001" in refused.stderr
    os.chown(tmp_path, 10001, 10001)
    mounted = ("--detach", "--name", "mounted", "--volume", f"{tmp_path}:/data")
    engine.docker("run", *mounted, image, "--no-auth")
    try:
        running = Container(engine, "mounted", 0)
        running.wait()
        assert "--no-auth was given" in running.log()
        assert not (tmp_path / "api-key").exists()
    finally:
        engine.start("rm", "--force", "mounted")


def test_what_the_gist_names_is_asked_for_at_the_hub(engine: Engine, image: str) -> None:
    """The gist's line as it stands: without a network it says so, with exit code 1."""
    said = engine.start(
        *("run", "--rm", "--network", "none", "-e", "HF_TOKEN=hf_x", "-p", "127.0.0.1::8000"),
        *(image, "--host", "0.0.0.0", "--model", gist.NAME),
    )
    assert said.returncode == 1
    assert "hub" in said.stderr
    assert "Traceback" not in said.stderr


SYSTEMD = """
FROM {image}
USER root
RUN apt-get update && apt-get install -y --no-install-recommends dbus systemd systemd-sysv
ENTRYPOINT ["/sbin/init"]
"""
# What systemd needs to be the first process in a container, short of --privileged.
FIRST = (
    *("--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--cap-add", "NET_ADMIN"),
    *("--security-opt", "seccomp=unconfined"),
    *("--security-opt", "apparmor=unconfined", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"),
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp", "--env", "container=docker"),
)


def test_as_a_service_of_a_real_systemd(engine: Engine, image: str) -> None:
    """The image's own installation, in the hardened unit: it serves, comes back, and goes."""
    dockerfile = SYSTEMD.format(image=image)
    build = ("build", "--quiet", "--network", "host", "--tag", "with-systemd", "-")
    engine.docker(*build, input=dockerfile)
    engine.docker("run", "--detach", "--name", "systemd", *FIRST, "with-systemd")

    def inside(command: str, code: int = 0) -> str:
        # As on a machine: without the image's own settings.
        clear = "unset $(env | sed -n 's/=.*//; /^MAESTRALE_/p') XDG_CACHE_HOME XDG_CONFIG_HOME; "
        done = engine.start("exec", "systemd", "sh", "-c", clear + command)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def healthy() -> None:
        ask = "python -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:8000/health\")'"
        deadline = time.monotonic() + 120
        while engine.start("exec", "systemd", "sh", "-c", ask).returncode != 0:
            assert time.monotonic() < deadline, inside("journalctl --no-pager -u maestrale")
            time.sleep(0.5)

    try:
        asked = ("exec", "systemd", "systemctl", "is-system-running", "--wait")
        deadline = time.monotonic() + 60
        while (done := engine.start(*asked)).stdout.strip() not in ("running", "degraded"):
            if time.monotonic() > deadline:
                pytest.skip(f"systemd can't run in a container here: {done.stdout}{done.stderr}")
            time.sleep(1)
        said = inside("maestrale service install --host 0.0.0.0 --cpu-level avx2")
        (key,) = re.findall(r"API key \(.*\): (\S+)", said)
        unit = "/etc/systemd/system/maestrale.service"
        assert key not in inside(f"cat {unit}")
        assert inside("stat -c '%a %U' /etc/maestrale/maestrale.env").strip() == "600 root"
        healthy()
        assert "ActiveState     active" in inside("maestrale service status")
        assert "--replace" in inside("maestrale service install", code=1)
        second = inside("maestrale service install --name second", code=1)
        assert "is already in use" in second.partition("ends as soon as it is started")[2]
        inside("maestrale service uninstall --name second")
        inside("kill -9 $(systemctl show --property MainPID --value maestrale)")
        time.sleep(1)
        healthy()
        assert inside("systemctl show --property NRestarts --value maestrale").strip() == "1"
        inside("systemctl stop maestrale")
        assert inside("systemctl show --property Result --value maestrale").strip() == "success"
        assert "is removed" in inside("maestrale service uninstall")
        inside(f"test ! -e {unit} && test ! -e /etc/maestrale/maestrale.env")
        assert "There is no service" in inside("maestrale service status", code=1)
    finally:
        engine.start("rm", "--force", "--volumes", "systemd")

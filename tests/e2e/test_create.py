"""`maestrale create` from end to end, on a machine that a stand-in cloud gives: SkyPilot real up
to its launch, then a real SSH server, set-up, service, tunnel and verify."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud_machine import AVAILABLE, CloudMachine, StandInCloud, cloud_machine, sky_python
from maestrale.cli import main
from maestrale.machine.cloud import task
from serving import clean_environment, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AVAILABLE, reason="needs root, sshd and ssh"),
]
CPU = ("--cloud", "do", "--gpu", "none", "--source", "maestrale:test", "--yes")


class Run:
    """Runs the command line in this process, with the stand-ins' variables."""

    def __init__(
        self,
        cloud: StandInCloud,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.cloud = cloud
        self._capfd = capfd
        for name, value in cloud.variables().items():
            monkeypatch.setenv(name, value)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self._capfd.readouterr()
        code = main.run(["create", *words])
        out, err = self._capfd.readouterr()
        return code, out, err

    def record(self, name: str = "maestrale") -> dict[str, object]:
        path = self.cloud.folder / "state/maestrale/machines" / f"{name}.json"
        assert path.stat().st_mode & 0o777 == 0o600
        found: dict[str, object] = json.loads(path.read_text())
        return found


@pytest.fixture
def run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    def make(machine: CloudMachine | None = None, fail: str = "") -> Run:
        nowhere = {"host": "127.0.0.1", "port": 9, "user": "root", "identity": ""}
        login = machine.login() if machine else nowhere
        return Run(StandInCloud(tmp_path, sky_python(), login, fail), capfd, monkeypatch)

    return make


@pytest.fixture
def machine(
    tmp_path: Path, cache_dir: Path, prepared_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CloudMachine]:
    # Another server may have the port on this machine, which is also the cloud's.
    monkeypatch.setattr(task, "PORT", free_port())
    folder = tmp_path / "machine"
    folder.mkdir()
    with cloud_machine(folder, cache_dir) as machine:
        yield machine


@pytest.mark.model
@pytest.mark.timeout(900)  # the whole of verify, on a machine that may be busy
def test_from_offer_to_verified_and_deleted(
    machine: CloudMachine, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = run(machine)
    code, out, err = create(*CPU)
    assert code == 0, err
    # The offer and its price came before anything was made; then each step was told.
    assert "$0.09 an hour" in err
    assert err.index("$0.09 an hour") < err.index("Bringing up")
    assert "Waiting until it is healthy" in err
    record = create.record()
    assert record["phase"] == "serving"
    key = str(record["key"])
    # The key is shown here, lies on the machine for root alone, and not in the unit.
    assert f"Key:      {key}" in out
    secrets = machine.etc / "maestrale" / "maestrale.env"
    assert key in secrets.read_text()
    assert secrets.stat().st_mode & 0o777 == 0o600
    unit = (machine.etc / "systemd/system/maestrale.service").read_text()
    assert key not in unit
    assert f"127.0.0.1:{task.PORT}" in unit
    assert create.cloud.launches() == [{"name": "maestrale", "secrets": ["MAESTRALE_API_KEY"]}]

    # The printed curl line works as it stands, through the printed tunnel.
    port = free_port()
    proved: list[str] = []
    monkeypatch.setattr("maestrale.cli.create_run.verify", lambda url, key: proved.append(key))
    code, out, err = again = create(*CPU, "--port", str(port))
    assert code == 0, again
    assert "going on" in err
    assert "it runs already" in err
    assert proved == [key]
    tunnel_line = next(line for line in out.splitlines() if "or: ssh" in line)
    tunnel = subprocess.Popen(shlex.split(tunnel_line.partition("or: ")[2]))
    try:
        line = out[out.index("  curl ") : out.index("\n\nKey:")]
        assert ask(line, port)
    finally:
        tunnel.terminate()
        tunnel.wait(10)

    code, out, err = create("--list")
    assert "maestrale  up  DigitalOcean g-2vcpu-8gb  nyc1  127.0.0.1  $0.09 an hour" in out
    code, out, err = create("--down", "maestrale", "--yes")
    assert (code, out) == (0, "maestrale is deleted. Nothing of it costs money now.\n")
    assert create.cloud.machines() == set()
    code, out, err = create("--list")
    assert out == "No machine was made here.\n"


def ask(curl: str, port: int) -> str:
    """The answer's text, once the tunnel is there."""
    ends = time.monotonic() + 20
    while True:
        words = ["sh", "-c", f"{curl} --silent --show-error --fail"]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0:
            text = json.loads(done.stdout)["choices"][0]["message"]["content"]
            assert text
            return str(text)
        assert done.returncode == 7, done.stderr  # no connection yet
        assert time.monotonic() < ends
        time.sleep(0.2)


def test_connect_holds_the_tunnel_and_stop_and_start_go_round(
    machine: CloudMachine, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    proved: list[str] = []
    create = run(machine)
    monkeypatch.setattr(
        "maestrale.cli.create_run.CloudSteps.prove",
        lambda self, target, record: proved.append(target.run("echo proved").stdout.strip()),
    )
    monkeypatch.setattr("maestrale.cli.create_run.CloudSteps.set_up", lambda *words: None)
    monkeypatch.setattr("maestrale.cli.create_run.CloudSteps.start", lambda *words: None)
    assert create(*CPU)[0] == 0
    code, out, _err = create("--stop", "maestrale")
    assert (code, "--start maestrale" in out) == (0, True)
    assert create.record()["phase"] == "stopped"
    assert "maestrale  stopped" in create("--list")[1]
    assert create("--start", "maestrale")[0] == 0
    assert proved == ["proved", "proved"]

    command = [sys.executable, "-m", "maestrale", "create", "--connect", "maestrale", "--port", "0"]
    process = subprocess.Popen(
        command, env={**clean_environment(), **create.cloud.variables()}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process, process.stdout:
        said = process.stdout.readline().decode()
        assert said.startswith("maestrale answers at http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ("credentials", "doctl auth init"),
        ("capacity", "no such machine free"),
        ("quota", "quota"),
        ("dies", "process ended"),
    ],
)
def test_what_the_cloud_refuses_leaves_nothing(
    run: Callable[..., Run], fail: str, said: str
) -> None:
    create = run(fail=fail)
    code, _out, err = create(*CPU)
    assert code == 1
    assert said in err
    assert create.cloud.machines() == set()
    if fail in ("capacity", "quota"):
        assert "nothing costs money" in err
    assert "No machine was made here" in create("--list")[1] or fail == "dies"


def test_ssh_that_never_comes(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maestrale.cli.create.SSH_SECONDS", 1.0)
    create = run()
    code, _, err = create(*CPU)
    assert code == 1
    assert "No login by SSH within 1 s" in err
    assert "costs $0.09 an hour" in err
    assert "maestrale create --down maestrale" in err
    assert create.cloud.machines() == {"maestrale"}
    assert create.record()["phase"] == "up"
    # Deletion that fails says so, and can be tried again.
    create.cloud.fail = "down"
    failing = Run(create.cloud, create._capfd, monkeypatch)
    code, _out, err = failing("--down", "maestrale", "--yes")
    assert code == 1
    assert "may still cost money" in err
    assert failing.record()["name"] == "maestrale"
    create.cloud.fail = ""
    assert Run(create.cloud, create._capfd, monkeypatch)("--down", "maestrale", "--yes")[0] == 0


def test_a_service_that_fails_shows_its_log(
    machine: CloudMachine, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maestrale.machine.cloud.steps._LOOK_SECONDS", 0.5)
    create = run(machine)
    # The stand-in passes flags on; this one is wrong, so the server ends at once.
    broken = machine.etc / "stand-in.json"
    settings = json.loads(broken.read_text())
    broken.write_text(json.dumps({**settings, "command": [*settings["command"], "--no-such-flag"]}))
    code, _out, err = create(*CPU)
    assert code == 1
    assert "The service failed" in err
    assert "no-such-flag" in err
    assert "Run the same command again to go on" in err
    # The machine is mended; the same command goes on and doesn't launch another.
    broken.write_text(json.dumps(settings))


def test_an_interrupted_launch_says_how_to_delete(run: Callable[..., Run], tmp_path: Path) -> None:
    create = run(fail="slow")
    launching = tmp_path / "cloud" / "launching"
    process = subprocess.Popen(
        [sys.executable, "-m", "maestrale", "create", *CPU],
        env={**clean_environment(), **create.cloud.variables()},
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    with process, process.stderr:
        ends = time.monotonic() + 120
        while not launching.exists() and time.monotonic() < ends:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read().decode()
        assert process.wait(60) == 130
    assert "Interrupted. The machine maestrale may be there (state: INIT)" in err
    assert "maestrale create --down maestrale" in err


def test_a_name_that_is_taken(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maestrale.cli.create.SSH_SECONDS", 0.5)
    create = run()
    assert create(*CPU)[0] == 1
    code, _out, err = create("--cloud", "lambda", "--gpu", "A100-80GB", "--yes")
    assert code == 2
    assert "already" in err
    assert "DigitalOcean" in err


def test_dry_run_prints_the_task_file_and_makes_nothing(run: Callable[..., Run]) -> None:
    create = run()
    code, out, err = create("--cloud", "paperspace", "--dry-run", "--autostop", "30")
    assert code == 0, err
    assert out.startswith('name: "maestrale"\nresources:\n  infra: "paperspace/East Coast (NY2)"\n')
    assert "a static address" in err
    assert "$1.38 an hour" in err
    assert create.cloud.launches() == []
    assert not (create.cloud.folder / "state/maestrale/machines/maestrale.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cloud", "paperspace", "--spot", "--yes"), "no spot machines"),
        (("--cloud", "lambda", "--image", "x", "--yes"), "can't start"),
        (("--cloud", "runpod", "--yes"), "such an image is made"),
        (("--cloud", "nowhere", "--yes"), "not known"),
        (("--cloud", "do"), "Say --yes"),
        (("--list", "--down", "x"), "One at a time"),
        (("--down", "x"), "no machine 'x'"),
        (("--connect", "x"), "no machine 'x'"),
        (("--cloud", "do", "--source", "no/such/file", "--yes"), "no such file"),
    ],
)
def test_what_makes_no_sense_is_refused_first(
    run: Callable[..., Run], words: tuple[str, ...], said: str
) -> None:
    create = run()
    code, _out, err = create(*words)
    assert code in (1, 2)
    assert said in err
    assert create.cloud.launches() == []

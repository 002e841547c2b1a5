"""doctor's view of a real Docker engine: as root, as a user without rights, and stopped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from docker_engine import Engine, docker_engine
from maestrale.machine.doctor import Asked, Finding, examine
from maestrale.machine.facts import MachineFacts
from maestrale.machine.probe import probe_script, read_facts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a Docker engine"),
]
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with docker_engine() as one:
        yield one


def look(engine: Engine, *prefix: str) -> MachineFacts:
    done = subprocess.run(
        [*prefix, "sh", "-s"],
        input=f"{{\n{probe_script()}\n}} </dev/null\n",
        env=engine.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    return read_facts(done.stdout)


def finding(facts: MachineFacts) -> Finding:
    return next(one for one in examine(facts, Asked()) if one.check == "docker")


def test_root_may_use_it(engine: Engine) -> None:
    facts = look(engine)
    assert finding(facts).state == "ok", finding(facts)
    docker = facts.docker
    assert docker.server == engine.docker("version", "--format", "{{.Server.Version}}")
    assert docker.root == str(engine.socket.parent / "data")
    assert "runc" in docker.runtimes
    disk = facts.disk_of(docker.root)
    assert disk is not None
    assert disk.size == os.statvfs(docker.root).f_frsize * os.statvfs(docker.root).f_blocks


def test_a_user_without_rights_may_not(engine: Engine) -> None:
    facts = look(engine, *NOBODY)
    assert (facts.docker.running, facts.docker.access) == (True, False)
    assert finding(facts).command == "sudo usermod -aG docker nobody"


def test_looking_leaves_it_as_it_was(engine: Engine) -> None:
    before = engine.docker("system", "df")
    look(engine)
    assert engine.docker("system", "df") == before
    assert engine.docker("ps", "--all", "--quiet") == ""


def test_one_that_is_stopped() -> None:
    with docker_engine() as one:
        environment = one
    facts = look(environment)
    assert facts.docker.installed
    assert facts.docker.running is False
    assert "does not run" in finding(facts).what

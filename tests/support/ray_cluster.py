"""A Ray cluster for tests: a head of its own, and a second node in a network namespace.

One for the whole session, as Ray takes many seconds to start. It lives in child processes and a
private folder, and ends with them.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from maestrale.cluster.engine import RayServeEngine
from maestrale.cluster.options import ClusterOptions
from maestrale.cluster.runtime import Runtime
from maestrale.engines.base import EngineConfig
from running_engine import RunningEngine

HERE = Path(__file__).parent
HEAD_CPUS, HEAD_GPUS = 8, 2
LAG = 1.3  # seconds that a replica's stats may be behind: two heartbeats on the way
NUMBER = os.getpid() % 4000
OURS, THEIRS = (
    f"10.{100 + NUMBER // 250}.{NUMBER % 250}.1",
    f"10.{100 + NUMBER // 250}.{NUMBER % 250}.2",
)


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class RayCluster:
    """Use as a context. `namespaces`: whether a second node can have a network of its own."""

    def __init__(self, *folders: Path) -> None:
        """`folders`: where its nodes look for modules, too."""
        self._folders = folders
        self._stack = contextlib.ExitStack()
        self._numbers, self._nodes = itertools.count(), itertools.count()
        self.namespace = f"mst{NUMBER}"
        self.namespaces = False
        self.folder = ""
        self.address = ""
        self.token = secrets.token_hex(32)

    def __enter__(self) -> RayCluster:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=self.token)  # before the import
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module("ray.serve")
        self.folder = tempfile.mkdtemp(prefix="mr", dir="/tmp")
        self._stack.callback(shutil.rmtree, self.folder, True)
        self.namespaces = self._make_namespace()
        head = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "ray_head.py"), self.folder),
                *(str(HEAD_CPUS), str(HEAD_GPUS)),
                *([OURS] if self.namespaces else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log("head"),
            start_new_session=True,
            env=self.environment,
        )
        self._stack.callback(_end, head)
        assert head.stdout is not None
        self._stack.callback(head.stdout.close)
        self.address = head.stdout.readline().decode().strip()
        assert self.address, Path(f"{self.folder}/head.log").read_text()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            os.environ.pop(name, None)

    @property
    def environment(self) -> dict[str, str]:
        folders = [*map(str, self._folders), str(HERE.parents[1] / "src"), str(HERE)]
        path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": path}

    def options(self, **more: Any) -> ClusterOptions:
        given: dict[str, Any] = {
            "model": "none",
            "least": 2,
            "address": self.address,
            "app": f"app{next(self._numbers)}",
            "upscale_delay": 0.5,
            "downscale_delay": 1.0,
        } | more
        given.setdefault("most", given["least"])
        return ClusterOptions(**given)

    def engine(self, config: EngineConfig, **more: Any) -> RunningEngine:
        """An engine with its replicas, all of which are up."""
        options = self.options(**more)

        def build(config: EngineConfig) -> RayServeEngine:
            return RayServeEngine(config, options, failure_window=20.0)

        running = RunningEngine(config, build, LAG)
        wait_until(lambda: len(up(running)) >= options.least)
        return running

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """This process is Ray's client meanwhile, also without an engine."""
        runtime = Runtime(self.options())
        runtime.join()
        try:
            yield
        finally:
            runtime.leave()

    @contextlib.contextmanager
    def server(self, config: EngineConfig, **more: Any) -> Iterator[str]:
        """Another engine, in a process of its own; gives what it said of its start."""
        given = [msgspec.msgpack.encode(each).hex() for each in (config, self.options(**more))]
        with subprocess.Popen(
            [sys.executable, str(HERE / "ray_server.py"), *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log("server"),
            env=self.environment,
        ) as process:
            assert process.stdout is not None
            try:
                yield process.stdout.readline().decode().strip()
            finally:
                process.communicate(timeout=60)

    def replicas(self, app: str) -> int:
        """How many are up, by Ray Serve's word. Needs an engine that is connected."""
        status = importlib.import_module("ray.serve").status().applications.get(app)
        return status.deployments["engine"].replica_states.get("RUNNING", 0) if status else 0

    def second_node(self, cpus: int, gpus: int = 0, **environment: str) -> Node:
        """Another node, in the namespace where that works. Its `gpus` are but told to Ray."""
        inside = ["ip", "netns", "exec", self.namespace] if self.namespaces else []
        process = subprocess.Popen(
            [
                *inside,
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
                *(f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"),
                *([f"--node-ip-address={THEIRS}"] if self.namespaces else []),
                *("--object-store-memory=100000000", "--disable-usage-stats"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log(f"node{next(self._nodes)}"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**self.environment, **environment},
        )
        node = Node(process)
        self._stack.callback(node.kill)
        return node

    def cut(self, off: bool) -> None:
        """Cut the second node's network, or mend it."""
        state = "down" if off else "up"
        subprocess.run(["ip", "link", "set", self.namespace, state], check=True)

    def _log(self, name: str) -> IO[bytes]:
        return self._stack.enter_context(open(f"{self.folder}/{name}.log", "wb"))

    def _make_namespace(self) -> bool:
        ip = shutil.which("ip")
        if ip is None or os.geteuid() != 0:
            return False
        name, inside = self.namespace, ["ip", "-n", self.namespace]
        commands = [
            ["ip", "netns", "add", name],
            ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name],
            ["ip", "address", "add", f"{OURS}/24", "dev", name],
            ["ip", "link", "set", name, "up"],
            [*inside, "address", "add", f"{THEIRS}/24", "dev", "eth0"],
            [*inside, "link", "set", "eth0", "up"],
            [*inside, "link", "set", "lo", "up"],
        ]
        self._stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
        return all(subprocess.run(each, capture_output=True).returncode == 0 for each in commands)


class Node:
    """A raylet and all that it started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def kill(self) -> None:
        """As if the machine lost its power."""
        for pid in [*_below(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def up(running: RunningEngine) -> list[Any]:
    """Its replicas that take requests."""
    engine = running.engine
    assert isinstance(engine, RayServeEngine)
    return [replica for replica in engine.replicas() if replica.state == "up"]


def gpus(kind: str = "available_resources") -> float:
    """Of the cluster that this process has joined; all of them: `cluster_resources`."""
    return float(getattr(importlib.import_module("ray"), kind)().get("GPU", 0))


def placement_groups() -> list[dict[str, Any]]:
    """Those that there are on the cluster."""
    table = importlib.import_module("ray.util").placement_group_table()
    return [dict(each) for each in table.values() if each["state"] == "CREATED"]


@dataclass(frozen=True)
class Actor:
    """One of Ray's, that is alive."""

    name: str
    node: str
    pid: int


def actors(kind: str) -> list[Actor]:
    """Those of this class on the cluster that this process has joined."""
    table = importlib.import_module("ray._private.state").actors(actor_state_name="ALIVE")
    return [
        Actor(each["Name"], each["Address"]["NodeID"], each["Pid"])
        for each in table.values()
        if each["ActorClassName"] == kind
    ]


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        for pid in [*_below(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _below(pid: int) -> list[int]:
    """All that a process started, and what those did."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found += new
    return found

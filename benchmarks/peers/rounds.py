"""Rounds: each peer in turn, alone on the machine, started anew, asked the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import cells, token_ids
from benchmarks.peers.install import CannotInstall
from benchmarks.peers.limits import model_size
from benchmarks.peers.peers import ROOT, Context, Peer, Server
from benchmarks.peers.processes import Running, free_port
from benchmarks.peers.questions import SETTLING_SECONDS, short
from maestrale.bench.client import BenchTarget, Client

START_SECONDS = 1200.0
CELL_SECONDS = 240.0
FRONT_END_ROUNDS = 5
ENVIRONMENT = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int
    streams: tuple[tuple[int, int], ...]
    """(streams at once, tokens of each answer)"""
    json_repeats: int
    disturbed_rounds: int
    """Rounds of ours with the cells in which something disturbs running streams: they take long."""
    disturbed_rounds_of_peers: int = 0

    def rounds_of(self, peer: Peer) -> int:
        return min(self.rounds, peer.rounds or self.rounds)

    def is_disturbed(self, peer: Peer, number: int) -> bool:
        """Whether round `number` (from 0) of this peer has those cells, and JSON."""
        if is_ours(peer):
            return number < self.disturbed_rounds
        return peer.rounds is None and number < self.disturbed_rounds_of_peers


FULL = Plan(
    rounds=5,
    streams=((1, 64), (8, 64), (32, 64)),
    json_repeats=2,
    disturbed_rounds=5,
    disturbed_rounds_of_peers=1,
)
QUICK = Plan(rounds=2, streams=((1, 32), (8, 32), (32, 16)), json_repeats=1, disturbed_rounds=1)


def is_ours(peer: Peer) -> bool:
    return peer.key == "ours"


@dataclass
class Found:
    """What one peer gave: numbers by name, one for each round that had them."""

    peer: Peer
    version: str = ""
    command: str = ""
    numbers: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """What its rounds took, all told."""

    def add(self, numbers: cells.Numbers) -> None:
        for name, value in numbers.items():
            self.numbers[name].append(value)


class Rounds:
    """Runs the plan. `found` has what came so far, also when it is interrupted."""

    def __init__(self, context: Context, plan: Plan, peers: list[Peer], logs: Path) -> None:
        self.found = {peer.key: Found(peer) for peer in peers}
        self._context = context
        self._plan = plan
        self._peers = peers
        self._logs = logs
        self._servers: dict[str, Server] = {}
        self._kept: dict[str, tuple[Running, int]] = {}

    def prepare(self) -> None:
        """Install and try to start; who can't is reported and left out."""
        for peer in self._peers:
            found = self.found[peer.key]
            try:
                server = self._servers[peer.key] = peer.prepare(self._context)
            except (CannotInstall, OSError) as error:
                found.problems.append(f"not installed: {error}")
                self._context.say(f"{peer.title}: left out: {error}")
                continue
            found.version = server.version
            said = " ".join(server.command).replace(f"{ROOT}/", "")
            found.command = said.replace(str(Path.home()), "~")
            if peer.learns:
                self._first_start(peer)

    def _first_start(self, peer: Peer) -> None:
        """Let it make what it keeps: that may take minutes, once, and is no part of a round."""
        version = self.found[peer.key].version
        started = self._context.cache / f"started-{peer.key}-{version}"
        if started.exists():
            return
        self._context.say(f"{peer.title}: first start, it makes what it keeps (minutes)")
        try:
            with self._serving(peer):
                pass
            started.touch()
        except cells.Failed as error:
            self.found[peer.key].problems.append(str(error))
            del self._servers[peer.key]
        finally:
            running, _ = self._kept.pop(peer.key, (None, 0))
            if running is not None:
                running.stop()

    def run(self) -> None:
        begun = time.perf_counter()
        try:
            for number in range(self._plan.rounds):
                for peer in self._peers:
                    if peer.key in self._servers and number < self._plan.rounds_of(peer):
                        self._measure(peer, number)
                left = self._seconds_left(number + 1)
                self._context.say(
                    f"round {number + 1} of {self._plan.rounds} done after "
                    f"{(time.perf_counter() - begun) / 60:.0f} min; about {left / 60:.0f} to go"
                )
        finally:
            for running, _ in self._kept.values():
                running.stop()

    def _seconds_left(self, done: int) -> float:
        """By what each peer's last round took."""
        return sum(
            (self._plan.rounds_of(found.peer) - done) * found.seconds[-1]
            for found in self.found.values()
            if found.seconds and self._plan.rounds_of(found.peer) > done
        )

    def _measure(self, peer: Peer, number: int) -> None:
        found, begun = self.found[peer.key], time.perf_counter()
        try:
            if peer.in_process:
                found.add(self._without_server(peer, number))
            else:
                with self._serving(peer) as (running, client, numbers):
                    found.add(numbers)
                    server = self._servers[peer.key]
                    self._cells(cells.Asker(client, server.model), found, peer, number)
                    memory = running.memory()
                    found.add({"pss": memory.pss, "rss": memory.rss})
        except Exception as error:
            found.problems.append(f"round {number + 1}: {_told(error)}")
        seconds = time.perf_counter() - begun
        found.seconds.append(seconds)
        speed = found.numbers["tokens_per_second_8"][-1:] or [float("nan")]
        self._context.say(
            f"round {number + 1}, {peer.key}: {seconds:.0f} s, {speed[0]:.0f} tok/s at 8"
            + "".join(f"; {problem}" for problem in found.problems[-1:])
        )

    @contextlib.contextmanager
    def _serving(self, peer: Peer) -> Iterator[tuple[Running, Client, cells.Numbers]]:
        """The peer's server, up and warm; what its start took."""
        numbers: cells.Numbers = {}
        if peer.key in self._kept:
            running, port = self._kept[peer.key]
            running.resume()
        else:
            server, port = self._servers[peer.key], free_port()
            command = [part.replace("{port}", str(port)) for part in server.command]
            running = Running(command, self._logs / f"{peer.key}.log", server.environment)
        client = Client(BenchTarget(f"http://127.0.0.1:{port}"), timeout=CELL_SECONDS)
        try:
            if peer.key not in self._kept:
                numbers["cold_start"] = self._first_token(client, peer, running)
                if peer.keeps_running:
                    self._kept[peer.key] = running, port
            asker = cells.Asker(client, self._servers[peer.key].model)
            _run(lambda: asker.run_on(short(1, 100)[0], 8), client)
            time.sleep(SETTLING_SECONDS)
            yield running, client, numbers
        finally:
            if peer.key in self._kept:
                running.pause()
            else:
                running.stop()

    def _first_token(self, client: Client, peer: Peer, running: Running) -> float:
        """Seconds from the start of the process to the first token. Raises: Failed."""
        asker = cells.Asker(client, self._servers[peer.key].model)
        deadline = running.started + START_SECONDS
        while True:
            with contextlib.suppress(cells.Failed):
                answer = _run(lambda: asker.ask(short(1, 100)[0], 1), client)
                return (answer.first_token or answer.ended) - running.started
            if running.ended or time.perf_counter() > deadline:
                raise cells.Failed(f"it did not start: {running.last_words()}")
            time.sleep(0.02)

    def _cells(self, asker: cells.Asker, found: Found, peer: Peer, number: int) -> None:
        plan = self._plan
        work: list[Callable[[], Any]] = [
            *(lambda s=s, t=t: cells.streams(asker, s, t) for s, t in plan.streams),
            # Short times, and so uncertain ones: two readers, one after the other.
            *(lambda r=r: cells.article(asker, r + number) for r in (1000, 1500)),
        ]
        disturbed = plan.is_disturbed(peer, number)
        if disturbed or is_ours(peer):
            work.append(lambda: cells.json(asker, plan.json_repeats))
        if disturbed:
            work.append(lambda: cells.fairness(asker, 2000 + 10 * number))
            work.append(lambda: cells.schema_stall(asker, number))
        for cell in work:
            try:
                found.add(_run(cell, asker.client))
            except Exception as error:
                found.problems.append(f"round {number + 1}: {_told(error)}")

    def _without_server(self, peer: Peer, number: int) -> cells.Numbers:
        job = token_ids.job(self._context.prepared, self._plan.streams, 1000 + number)
        return _numbers(self._servers[peer.key].command, json.dumps(job))


def _numbers(command: Sequence[str], given: str = "") -> cells.Numbers:
    """Run a program that prints its numbers as JSON, and read them. Raises: cells.Failed."""
    done = _child(command, given)
    if done.returncode:
        raise cells.Failed(f"it ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    numbers: cells.Numbers = json.loads(done.stdout.strip().splitlines()[-1])
    return numbers


def _child(command: Sequence[str], given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python to its end."""
    return subprocess.run(
        command,
        input=given,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
        timeout=CELL_SECONDS,
    )


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, cells.Failed) else f"{type(error).__name__}: {error}"


def limits(context: Context) -> cells.Numbers:
    """What the machine can do at most; see limits.py. Raises: cells.Failed."""
    from maestrale.config.paths import default_cache_dir
    from maestrale.engines.cpu.kernel.build import library

    kernel = library(default_cache_dir(), lambda *_: None)
    size = model_size(context.gguf)
    return {
        **_numbers([sys.executable, "-m", "benchmarks.peers.limits", str(kernel)]),
        "weights": size.weights,
        "head_weights": size.head,
        "weight_bytes": size.bytes,
    }


def front_end(folder: Path) -> list[float]:
    """Tokens/s that the API process streams to 128 clients from an engine that never waits."""
    rows = folder / "front-end.json"
    command = [sys.executable, "-m", "benchmarks.front_end", "--json", str(rows)]
    done = _child([*command, "--streams", *["128"] * FRONT_END_ROUNDS])
    if done.returncode:
        raise cells.Failed(f"bench-frontend failed: {done.stderr.strip()[-200:]}")
    return [row["tokens"] / row["seconds"] for row in json.loads(rows.read_text())]


def _run(work: Callable[[], Any], client: Client) -> Any:
    """Run a coroutine on a loop of its own; connections don't outlive it."""

    async def whole() -> Any:
        try:
            return await work()
        finally:
            client.close()

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(whole())

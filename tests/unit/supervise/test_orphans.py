"""No child process outlives the API process, however and whenever that one ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

MARK = "ORPHAN_TEST_MARK"
API_PROCESS = """
import asyncio, sys
from maestrale.engines.base import Constraint, GenerationRequest
from maestrale.engines.base import EngineConfig
from maestrale.supervise.process import SupervisedEngine
from maestrale.supervise.vetting import ConstraintVetter

async def main():
    options = {"hang_at_token": "5"} if sys.argv[1] == "hung" else {"tokens_per_second": "100"}
    engine = SupervisedEngine(EngineConfig(engine="scripted", model_dir="", options=options))
    vetter = ConstraintVetter("")
    vetting = asyncio.create_task(vetter.vet(Constraint("regex", "a+")))
    await engine.start()
    await vetting
    request = GenerationRequest(request_id="r", prompt=(1,), max_tokens=4000, seed=0)
    async for delta in engine.generate(request):
        print("running", flush=True)

asyncio.run(main())
"""


def marked(mark: str) -> list[int]:
    """Processes that live and carry the mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # gone meanwhile
    return found


def api_process(mark: str, how: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", API_PROCESS, how],
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def left_after(mark: str, seconds: float) -> list[int]:
    """What still lives once `seconds` are over; returns as soon as nothing does."""
    deadline = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


@pytest.mark.parametrize("how", ["busy", "hung"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_nothing_is_left_when_the_api_process_is_killed(how: str, end: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    with api_process(mark, how) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        assert len(marked(mark)) == 3, "the API process, the engine, the vetter"
        process.send_signal(end)
        process.wait()
    assert left_after(mark, 10) == []


ENGINE_WITH_A_HELPER = """
import asyncio
from maestrale.engines.base import EngineConfig
from maestrale.supervise.process import Restarts, SupervisedEngine

async def main():
    config = EngineConfig(engine="scripted", model_dir="", options={"helper": "1"})
    engine = SupervisedEngine(config, restarts=Restarts(pause=60.0, most=1))
    await engine.start()
    print(engine.engine_pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_processes_that_the_engine_started_end_with_it() -> None:
    """vLLM's engine core is such a process."""
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE_WITH_A_HELPER],
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        engine = int(process.stdout.readline())
        first = set(marked(mark))
        assert len(first) == 3, "the API process, the engine, its helper"
        os.kill(engine, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while (old := first & set(marked(mark)) - {process.pid}) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert old == set()
        process.kill()
    for left in left_after(mark, 1):  # its API process had no time to end the second engine's
        os.kill(left, signal.SIGKILL)


@pytest.mark.slow
def test_nothing_is_left_whatever_the_moment_of_the_kill() -> None:
    """Also before the handshake, when the child has not yet set itself up."""
    moments = random.Random(1)
    marks = []
    for _ in range(12):
        marks.append(uuid.uuid4().hex)
        with api_process(marks[-1]) as process:
            time.sleep(moments.uniform(0.0, 0.8))
            process.kill()
    assert [left for mark in marks if (left := left_after(mark, 10))] == []

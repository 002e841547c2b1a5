"""A signal that comes in the middle of a log line stops the server, too."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from pathlib import Path

import pytest

from api_app import make_settings
from maestrale.api.backend import Backend
from maestrale.serve.deployment import DeploymentHost
from maestrale.serve.front import Front
from maestrale.serve.lifecycle import Lifecycle
from maestrale.serve.progress import StartProgress


class _Front(Front):
    """Takes no requests: its one deployment is loaded for ever."""

    def __init__(self) -> None:
        super().__init__(Backend(make_settings()))
        self.over = asyncio.Event()
        self.loading = asyncio.Event()
        self.reloads = 0

    async def run(self) -> None:
        await self.over.wait()

    async def load(self, host: DeploymentHost, progress: StartProgress) -> None:
        self.loading.set()
        await asyncio.Event().wait()

    async def answering(self) -> None:
        pass

    async def changed(self) -> None:
        pass

    def reload(self) -> None:
        self.reloads += 1

    async def pass_on(self, grace: float) -> None:
        pass

    async def take_back(self) -> None:
        pass

    async def lend(self, folder: Path) -> None:
        pass

    async def drain(self) -> None:
        pass

    async def end(self) -> None:
        self.over.set()


async def lived(signals: list[signal.Signals]) -> _Front:
    """A server's life that these signals come into."""
    front = _Front()
    life = asyncio.create_task(Lifecycle(front, lambda deployments: None).run())
    await front.loading.wait()
    for number in signals:
        os.kill(os.getpid(), number)
    await asyncio.wait_for(life, 10)
    return front


def test_the_handler_writes_nothing_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Python may be inside a write to stderr then, which can't be entered twice."""
    caplog.set_level(logging.INFO)

    async def stopped() -> None:
        front = _Front()
        life = asyncio.create_task(Lifecycle(front, lambda deployments: None).run())
        await front.loading.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)  # the signal has come, and the loop hasn't gone on
        assert not caplog.messages
        await asyncio.wait_for(life, 10)

    asyncio.run(stopped())
    assert caplog.messages == ["SIGTERM received"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_still_loads(number: signal.Signals) -> None:
    front = asyncio.run(lived([number]))
    assert front.over.is_set()


def test_a_hangup_reloads_where_the_terminal_is_as_it_was() -> None:
    front = asyncio.run(lived([signal.SIGHUP, signal.SIGTERM]))
    assert front.reloads == 1

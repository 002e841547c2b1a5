"""A signal that comes in the middle of a log line stops the server, too."""

from __future__ import annotations

import asyncio
import logging
import signal

import pytest
import uvicorn

from maestrale.serve.server import Server


def test_the_handler_writes_nothing_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Python may be inside a write to stderr then, which can't be entered twice."""
    caplog.set_level(logging.INFO)

    async def stopped() -> None:
        stopping = asyncio.Event()
        server = Server(uvicorn.Config("unused:app"), stopping.set)
        server.handle_exit(signal.SIGTERM, None)
        assert not caplog.messages
        await asyncio.wait_for(stopping.wait(), 5)

    asyncio.run(stopped())
    assert caplog.messages == ["SIGTERM received"]

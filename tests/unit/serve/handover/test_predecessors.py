"""What the new server hears of the old, and says to it."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from api_app import make_settings
from maestrale.errors import SettingsError
from maestrale.models.fit_cpu import SPARE
from maestrale.serve.handover import predecessors as module
from maestrale.serve.handover.channel import Channel, Hello, greet
from maestrale.serve.handover.predecessors import Predecessors
from maestrale.serve.handover.program import VARIABLE
from maestrale.serve.listening import is_at, listen_at
from maestrale.serve.workers.parent import part_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def greeted(hello: Hello, *socks: socket.socket) -> tuple[socket.socket, Predecessors]:
    """The old one's end, and what the new one makes of it."""
    ours, theirs = socket.socketpair()
    greet(ours, hello, list(socks))
    environment = {VARIABLE: str(os.dup(theirs.fileno()))}
    theirs.close()
    found = Predecessors.of_this_start(environment)
    assert found is not None
    assert environment == {}  # its children are none of it
    return ours, found


HELLO = Hello(host="127.0.0.1", port=0, listeners=1, lenders=("/a",), api_key="sk-made")


async def test_sockets_and_older_servers_come_with_the_first_words() -> None:
    older, other = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, older, other:
        hello = Hello(host="127.0.0.1", port=0, listeners=1, lenders=("/a", "/b"))
        ours, found = greeted(hello, listener, other)
        assert [each.getsockname() for each in found.listeners] == [listener.getsockname()]
        assert list(found.lenders) == ["/a", "/b"]
        await found.open()
        ours.close()
        async with asyncio.timeout(5):
            while list(found.lenders) != ["/b"]:
                await asyncio.sleep(0.01)
        assert list(found.handed_on.values()) == ["/b"]
        found.close()
        for each in found.listeners:
            each.close()


async def test_it_waits_for_room_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, found = greeted(HELLO, listener)
    await found.open()
    old = Channel(ours)
    await old.open()
    monkeypatch.setattr(module, "memory_to_use", lambda: SPARE + 1000)
    await found.make_room(1000)  # both fit: nothing is said
    waiting = asyncio.create_task(found.make_room(1001))
    assert await old.hear() == "room"
    assert not waiting.done()
    old.say("a word of a later version")
    old.say("go")
    await asyncio.wait_for(waiting, 5)
    await found.make_room(None)  # it was had
    found.stop()  # nothing is said before it is ready
    found.ready()
    assert await old.hear() == "room"
    assert await old.hear() == "ready"
    found.stop()
    assert await old.hear() == "stop"
    found.close()
    assert await old.hear() == ""
    old.close()
    found.listeners[0].close()


async def test_nobody_is_waited_for_who_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, found = greeted(HELLO, listener)
    await found.open()
    waiting = asyncio.create_task(found.make_room(None))
    await asyncio.sleep(0)
    ours.close()
    await asyncio.wait_for(waiting, 5)
    assert found.lenders == ()
    found.listeners[0].close()


@pytest.mark.parametrize("given", ["x", "999", ""])
def test_a_variable_that_means_nothing(given: str) -> None:
    environment = {VARIABLE: given}
    if given:
        with pytest.raises(SettingsError, match=VARIABLE):
            Predecessors.of_this_start(environment)
    else:
        assert Predecessors.of_this_start(environment) is None


def test_another_address_takes_a_restart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, found = greeted(HELLO, listener)
    found.check(make_settings(host="127.0.0.1", port=0))
    with pytest.raises(SettingsError, match="--port 81"):
        found.check(make_settings(host="127.0.0.1", port=81))
    ours.close()
    found.close()
    found.listeners[0].close()


def test_sockets_that_are_given_are_taken_where_they_are_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert is_at(listener, make_settings(host="localhost", port=port))
        assert is_at(listener, make_settings(host="127.0.0.1", port=0))
        assert not is_at(listener, make_settings(host="127.0.0.1", port=port + 1))
        assert not is_at(listener, make_settings(host="0.0.0.0", port=port))
        assert listen_at(make_settings(host="127.0.0.1", port=port), [listener]) == [listener]
        [own] = listen_at(make_settings(host="127.0.0.2", port=0), [listener])
        with own:
            assert own.getsockname()[0] == "127.0.0.2"
        assert listener.fileno() == -1  # nobody would take what connects to it


@pytest.mark.parametrize(
    ("socks", "workers", "parts"),
    [("ab", 2, ["a", "b"]), ("a", 3, ["a", "a", "a"]), ("abc", 2, ["ac", "b"])],
)
def test_workers_share_the_sockets_that_there_are(
    socks: str, workers: int, parts: list[str]
) -> None:
    settings = make_settings(api_workers=workers)
    shared = [part_of(list(socks), place, settings) for place in range(workers)]
    assert ["".join(each) for each in shared] == parts

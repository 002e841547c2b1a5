"""The new server's side: the servers that it takes over from.

The nearest one started it. Those before that one, if any, still finish what they had begun.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import MutableMapping
from typing import Self

import msgspec

from maestrale.config.settings import Settings
from maestrale.errors import SettingsError
from maestrale.logs import LOGGER
from maestrale.models.fit_cpu import SPARE, memory_to_use
from maestrale.serve.handover.channel import Channel, Hello, greeted
from maestrale.serve.handover.program import VARIABLE


class Predecessors:
    """All of them. For one event loop, from `open` on."""

    def __init__(self, sock: socket.socket, hello: Hello, socks: list[socket.socket]) -> None:
        """`socks`: those that came with the first words."""
        self.hello = hello
        self.listeners = socks[: hello.listeners]
        """The sockets of the port."""
        channels = [Channel(each) for each in (sock, *socks[hello.listeners :])]
        self._nearest = channels[0]
        self._living = dict(zip(channels, hello.lenders, strict=True))
        self._listening: list[asyncio.Task[None]] = []
        self._room = asyncio.Event()
        self._ready = False

    @classmethod
    def of_this_start(cls, environment: MutableMapping[str, str]) -> Self | None:
        """Those that this process takes over from; None: it is started by itself.

        Raises: SettingsError where what started it says nothing of use.
        """
        given = environment.pop(VARIABLE, "")
        if not given:
            return None
        try:
            sock = socket.socket(fileno=int(given))
            sock.set_inheritable(False)
            return cls(sock, *greeted(sock))
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise SettingsError(
                f"{VARIABLE} is what one server sets for the next, and this one can't take over: "
                f"{error}. Unset it."
            ) from error

    def check(self, settings: Settings) -> None:
        """Raises: SettingsError where it would listen elsewhere."""
        hello = self.hello
        if (settings.host, settings.port) != (hello.host, hello.port):
            raise SettingsError(
                f"The server that runs listens at --host {hello.host} --port {hello.port}, and "
                f"now it is --host {settings.host} --port {settings.port}: another address takes a "
                "restart."
            )

    @property
    def lenders(self) -> tuple[str, ...]:
        """The folders of the sockets at which they lend what they make."""
        return tuple(self._living.values())

    @property
    def handed_on(self) -> dict[socket.socket, str]:
        """What the next server is to know of those that live: their channels and folders."""
        return {channel.sock: folder for channel, folder in self._living.items()}

    async def open(self) -> None:
        """Begin to listen to them."""
        for channel in tuple(self._living):
            await channel.open()
            self._listening.append(asyncio.create_task(self._hear(channel)))

    async def make_room(self, need: int | None) -> None:
        """Wait until there is memory for engines that take so many bytes; None: for any that may
        come. Where it isn't free, the nearest one ends its own first.
        """
        fits = need is not None and need <= memory_to_use() - SPARE
        if fits or self._nearest not in self._living:
            return
        self._nearest.say("room")
        await self._room.wait()

    def ready(self) -> None:
        """This one takes connections: the others may end."""
        self._ready = True
        self._nearest.say("ready")

    def stop(self) -> None:
        """The server is to end: they have their grace, unless the port is theirs yet."""
        for channel in self._living if self._ready else ():
            channel.say("stop")

    async def ended(self, seconds: float) -> None:
        """Wait until none is left, at most so long."""
        if self._ready and self._listening:
            await asyncio.wait(self._listening, timeout=seconds)

    def close(self) -> None:
        """They learn of this one's end, unless another has their channels."""
        for task in self._listening:
            task.cancel()
        for channel in self._living:
            channel.close()

    async def _hear(self, channel: Channel) -> None:
        while word := await channel.hear():
            if word == "go":
                self._room.set()
        del self._living[channel]
        channel.close()
        if channel is self._nearest:
            if not self._ready:
                LOGGER.warning("The server to take over from is gone; this one goes on alone.")
            self._room.set()

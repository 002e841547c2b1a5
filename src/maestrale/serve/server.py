"""All of `maestrale serve`: listen at once, load the model meanwhile, drain at the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from maestrale import logs
from maestrale.api.app import build_app
from maestrale.api.backend import Backend
from maestrale.api.dialects import DIALECTS
from maestrale.api.http.connections import raise_file_limit
from maestrale.api.http.protocol import protocol_class
from maestrale.chat.service import ChatService
from maestrale.config.settings import Settings, default_key_file, is_loopback
from maestrale.errors import SettingsError
from maestrale.keys import KeyStore, kept_key, new_key
from maestrale.logs import LOGGER
from maestrale.serve.hosting import EngineHost, in_thread
from maestrale.serve.memory import return_large_buffers
from maestrale.serve.progress import Progress

LAST_WORDS = 2.0  # seconds for the ends of streams to be sent once the engine has stopped
# Seconds that an idle connection is kept. Longer than clients keep theirs (httpx: 5 s), so that
# no request is sent on a connection that is just being closed.
KEEP_ALIVE = 30
# Fewer than connections are allowed: a burst must not push out who hasn't been read yet.
BACKLOG = 512


Announce = Callable[[str, str], None]


def print_banner(url: str, text: str) -> None:
    """On stdout; a reader that is gone stops no server."""
    try:
        print(text, flush=True)
    except OSError as error:
        LOGGER.warning("The banner could not be shown: %s.", error.strerror)
        sys.stdout = None  # what it still holds would be written again at the end


def run(settings: Settings, announce: Announce = print_banner) -> None:
    """Serve until SIGTERM or SIGINT; answers in flight then have `settings.grace` to finish.

    `announce` is told the URL and the banner once requests can be answered.
    Raises: SettingsError, ModelError, EngineError with a message for the terminal.
    """
    logs.configure(settings.log_level, settings.log_format)
    settings = dataclasses.replace(settings, key_file=key_file(settings))
    made_key = key_to_make(settings)
    if made_key:
        settings = dataclasses.replace(settings, api_key=(made_key,))
    raise_file_limit()
    return_large_buffers()
    with (
        contextlib.ExitStack() as listening,
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        sock = listening.enter_context(listen(settings.host, settings.port))
        if settings.api_workers > 1:
            from maestrale.serve.workers import parent

            socks = [listening.enter_context(each) for each in parent.share(sock, settings)]
            runner.run(parent.serve(settings, socks, made_key, announce))
        else:
            runner.run(_serve(settings, sock, made_key, announce))


def key_to_make(settings: Settings) -> str:
    """The key that nobody gave and this address needs, or an empty one. Raises: SettingsError."""
    if settings.no_auth or settings.api_key or is_loopback(settings.host):
        return ""
    kept = settings.made_key_file
    # Once kept, it holds beside the keys that were added later.
    if asks_for_key(settings) and not (kept and kept.exists()):
        return ""
    return kept_key(kept) if kept else new_key()


def key_file(settings: Settings) -> Path | None:
    """The file whose keys are asked for, if any; the default one may come into being later."""
    if settings.key_file is None and not settings.no_auth:
        return default_key_file()
    return settings.key_file


def asks_for_key(settings: Settings) -> bool:
    """Whether there are keys from the start. Raises: SettingsError for a broken key file."""
    return KeyStore(settings.api_key, settings.key_file).required


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0: a free one).

    Raises: SettingsError that says what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SettingsError(
            f"--host {host}: this address is not known ({error.strerror})."
        ) from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise SettingsError(why_not_bound(host, port, error)) from error
    sock.set_inheritable(False)
    return sock


def banner(settings: Settings, url: str, names: tuple[str, ...], made_key: str) -> str:
    """What the terminal shows once requests can be answered."""
    key = made_key or ("YOUR_KEY" if asks_for_key(settings) else "")
    lines = ["", f"maestrale serves {', '.join(names)} on {url}", ""]
    if made_key:
        kept = settings.made_key_file
        lines += [f"API key ({f'kept in {kept}' if kept else 'shown this once'}): {made_key}", ""]
    if settings.no_auth and not is_loopback(settings.host):
        lines += ["Anyone who can reach this address can use it: --no-auth was given.", ""]
    lines.append(f"  curl {url}/v1/chat/completions \\")
    if key:
        lines.append(f"    -H 'Authorization: Bearer {key}' \\")
    lines += [
        "    -H 'Content-Type: application/json' \\",
        f'    -d \'{{"model": "{names[0]}", '
        '"messages": [{"role": "user", "content": "Hello!"}]}\'',
        "",
        f"Chat: {url}/    Status: {url}/status",
        f"API reference: {url}/docs    Stop: Ctrl-C",
        "",
    ]
    return "\n".join(lines)


class Server(uvicorn.Server):
    """uvicorn, but the first signal only begins to drain, and it ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not logged here: the signal may have come in the middle of writing another line.
        self._loop.call_soon_threadsafe(self._received, sig)

    def _received(self, sig: int) -> None:
        LOGGER.info("%s received", signal.Signals(sig).name)
        self._on_signal()


class _Run:
    """One server's life: the model loads, requests are answered, a signal ends it."""

    def __init__(
        self, settings: Settings, sock: socket.socket, made_key: str, announce: Announce
    ) -> None:
        self.settings = settings
        self.backend = Backend(settings)
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()
        self._made_key = made_key
        self._announce = announce
        self.host = EngineHost(settings)
        self.backend.elsewhere = self.host.elsewhere
        self.url = server_url(settings, sock)

    def on_hangup(self, config: uvicorn.Config) -> None:
        """SIGHUP: the server's terminal is gone, and it ends; or someone changed its files."""
        if terminal_is_gone():
            LOGGER.info("SIGHUP received: the terminal is gone")
            self.on_signal()
            return
        if config.ssl is None:
            LOGGER.info("SIGHUP received: keys are read anew by themselves, and there is no more")
            return
        try:
            config.ssl.load_cert_chain(str(self.settings.ssl_certfile), self.settings.ssl_keyfile)
        except (ssl.SSLError, OSError) as error:
            LOGGER.error("SIGHUP received: the certificate stays as it was: %s", error)
        else:
            LOGGER.info("SIGHUP received: new connections get the certificate as it is now")

    def on_signal(self) -> None:
        """The first signal drains; the second ends what is left."""
        if self.stopping.is_set():
            self.hurry.set()
        self.backend.drain()
        self.stopping.set()

    async def load(self) -> None:
        """Prepare the model, start its engine, and let requests in."""
        from maestrale.models.vocabulary import load_vocabulary
        from maestrale.prompt.encode import encoder_for, read_template

        settings = self.settings
        with Progress(self._tell) as progress:
            folder, prepared, config = await self.host.prepare(progress)
            progress.update("Starting the engine", None)
            template = read_template(settings.chat_template)
            engine, encoder, vocabulary = await asyncio.gather(
                self.host.start(config),
                in_thread(lambda: encoder_for(folder, template, settings.tool_call_parser)),
                in_thread(lambda: load_vocabulary(folder)),
            )
        service = ChatService(
            engine,
            encoder,
            vocabulary,
            self.host.vet(folder, prepared),
            seed=settings.seed,
            on_gap=self.backend.metrics.observe_gap,
        )
        self.backend.attach(service, prepared.name, prepared.sampling)
        if not self.stopping.is_set():
            text = banner(settings, self.url, self.backend.names, self._made_key)
            self._announce(self.url, text)

    async def drain(self) -> None:
        """Wait for the answers in flight, up to the grace; then stop the engine."""
        await self.host.drain(self.backend.admission, self.hurry)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.backend.admission.idle.wait(), LAST_WORDS)

    async def close(self) -> None:
        """Leave nothing running, however far it came."""
        await self.host.close()
        if self.backend.tracer is not None:
            # A collector that doesn't answer holds the end up no longer than this.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(in_thread(self.backend.tracer.close), LAST_WORDS)

    def _tell(self, text: str) -> None:
        self.backend.starting = text


async def _serve(
    settings: Settings, sock: socket.socket, made_key: str, announce: Announce
) -> None:
    run_ = _Run(settings, sock, made_key, announce)
    config = uvicorn_config(settings, run_.backend)
    server = Server(config, run_.on_signal)
    on_hangup(lambda: run_.on_hangup(config))
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    loading = asyncio.create_task(run_.load())
    watching = asyncio.create_task(run_.backend.history.run())
    stopping = asyncio.create_task(run_.stopping.wait())
    try:
        await asyncio.wait({serving, loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()  # raises what went wrong
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        else:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        await run_.drain()
    finally:
        loading.cancel()
        stopping.cancel()
        watching.cancel()
        await run_.close()
        server.should_exit = True
        await serving


def on_hangup(work: Callable[[], None]) -> None:
    """Call `work` at SIGHUP, unless the server was told to ignore that (nohup)."""
    _HAD_TERMINAL.append(_has_terminal())
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, work)


def terminal_is_gone() -> bool:
    """Whether there was a terminal at the start of the server, and is none any more."""
    return any(_HAD_TERMINAL) and not _has_terminal()


_HAD_TERMINAL: list[bool] = []


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def uvicorn_config(settings: Settings, backend: Backend) -> uvicorn.Config:
    """How HTTP is served on this backend. Raises: SettingsError for TLS files of no use."""
    config = uvicorn.Config(
        build_app(backend),
        http=protocol_class(dialects=DIALECTS),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(LAST_WORDS),
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(
            f"--ssl-certfile {settings.ssl_certfile} and --ssl-keyfile {settings.ssl_keyfile} "
            f"can't be used: {error}. Both must be PEM, and belong together."
        ) from error
    return config


def server_url(settings: Settings, sock: socket.socket) -> str:
    """The server's URL, as reached from this machine."""
    host = settings.host.strip("[]")
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1"
    if ":" in host:
        host = f"[{host}]"
    scheme = "https" if settings.ssl_certfile else "http"
    return f"{scheme}://{host}:{sock.getsockname()[1]}"


def why_not_bound(host: str, port: int, error: OSError) -> str:
    """What to tell the person who wanted this port."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is already in use. Stop the program that uses it, "
            f"or choose another: --port {port + 1} (--port 0 takes a free one)."
        )
    if error.errno == errno.EACCES:
        return f"This user may not listen on port {port}. Choose one above 1023 with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: no network interface of this machine has this address."
    return f"Can't listen on {host}:{port}: {error.strerror}."


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop

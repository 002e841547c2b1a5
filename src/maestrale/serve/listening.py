"""Where a server listens, and how HTTP is served there."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Sequence

import uvicorn

from maestrale.api.app import build_app
from maestrale.api.backend import Backend
from maestrale.api.dialects import DIALECTS
from maestrale.api.http.protocol import protocol_class
from maestrale.config.addresses import is_loopback
from maestrale.config.settings import Settings
from maestrale.errors import SettingsError

LAST_WORDS = 2.0  # seconds for the ends of streams to be sent once the engine has stopped
# Seconds that an idle connection is kept. Longer than clients keep theirs (httpx: 5 s), so that
# no request is sent on a connection that is just being closed.
KEEP_ALIVE = 30
# Fewer than connections are allowed: a burst must not push out who hasn't been read yet.
BACKLOG = 512
# OpenSSL's name and the line of Python that its errors come with.
_LIBRARY = re.compile(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$")


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
    if is_loopback(host) and not is_loopback(str(address[0])):
        raise SettingsError(
            f"--host {host}: on this machine the name means {address[0]}, which others may reach. "
            "Give the address itself: --host 127.0.0.1."
        )
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise SettingsError(why_not_bound(host, port, error)) from error
    sock.set_inheritable(False)
    return sock


def listen_at(settings: Settings, given: Sequence[socket.socket] = ()) -> list[socket.socket]:
    """The sockets of the port: one, or one for each API worker. `given`: those that another has
    bound for us, which are taken if they are at this address.

    Raises: SettingsError that says what to do.
    """
    if given and is_at(given[0], settings):
        return list(given)
    for each in given:
        each.close()
    sock = listen(settings.host, settings.port)
    return [sock] if settings.api_workers == 1 else share(sock, settings)


def is_at(sock: socket.socket, settings: Settings) -> bool:
    """Whether it is bound to the address that these settings name."""
    host, port = sock.getsockname()[:2]
    if settings.port not in (0, port):
        return False
    try:
        found = socket.getaddrinfo(
            settings.host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError:
        return False
    return host in {address[0] for *_, address in found}


def share(sock: socket.socket, settings: Settings) -> list[socket.socket]:
    """A socket for each API worker at the address of `sock`, which is closed: nobody else listens
    there.

    Raises: SettingsError when somebody else took it at this moment.
    """
    address, family = sock.getsockname(), sock.family
    sock.close()
    socks = []
    try:
        for _ in range(settings.api_workers):
            socks.append(socket.socket(family, socket.SOCK_STREAM))
            socks[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            socks[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            socks[-1].bind(address)
    except OSError as error:
        for each in socks:
            each.close()
        raise SettingsError(why_not_bound(settings.host, address[1], error)) from error
    return socks


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
    except OSError as error:
        raise SettingsError(
            f"--ssl-certfile {settings.ssl_certfile} and --ssl-keyfile {settings.ssl_keyfile} "
            f"can't be used ({why(error)}). Both must be PEM, and belong together."
        ) from error
    return config


def why(error: OSError) -> str:
    """What is wrong with a certificate or its key, without the library's own lines."""
    return _LIBRARY.sub("", error.strerror or str(error))


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

"""The API process on a node: a server that joins the replicas, as `serve --ray-join` does.

Its settings come over standard input, not over the command line or the environment, which others
on the machine may read. On standard output it writes `Word`s, one a line.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from pathlib import Path

import msgspec

from maestrale.cluster.runtime import Runtime
from maestrale.config.addresses import is_loopback
from maestrale.config.paths import default_cache_dir
from maestrale.config.settings import Settings, flag
from maestrale.errors import MaestraleError, SettingsError
from maestrale.processes import die_with_parent
from maestrale.serve.nodes.messages import ChildSpec, Word
from maestrale.serve.server import run
from maestrale.serve.workers.messages import unpack_settings

EVERYWHERE = ("0.0.0.0", "::", "[::]")  # noqa: S104 - compared with, not listened on
FILES = ("ssl_certfile", "ssl_keyfile", "chat_template")


def settings_here(spec: ChildSpec, packed: bytes) -> Settings:
    """The first server's settings, or those of one of its models, as this node takes them.

    Raises: SettingsError for a file that this node lacks.
    """
    settings = unpack_settings(packed)
    for name in FILES:
        path = getattr(settings, name)
        if path is not None and not path.is_file():
            raise SettingsError(
                f"{flag(name)}: the node {platform.node()} ({spec.node_ip}) has no file {path}. "
                "With --api-nodes all it must be at the same path on every node."
            )
    return dataclasses.replace(
        settings,
        host=host_here(settings.host, spec.node_ip),
        key_file=Path(spec.key_file),
        ray_address=spec.cluster,
        cache_dir=default_cache_dir() if spec.node.default_cache else settings.cache_dir,
    )


def host_here(host: str, node_ip: str) -> str:
    """Where this node listens: an address of the first server's machine is not ours."""
    return host if is_loopback(host) or host in EVERYWHERE else node_ip


def url_here(url: str, host: str, node_ip: str) -> str:
    """Where others reach it: this machine's word for all interfaces is its loopback address."""
    if host not in EVERYWHERE:
        return url
    shown = f"[{node_ip}]" if ":" in node_ip else node_ip
    return url.replace("127.0.0.1", shown, 1)


def main() -> None:
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=ChildSpec)
    die_with_parent(spec.parent)
    words = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever else is printed goes to the log

    def say(word: Word) -> None:
        words.write(msgspec.json.encode(word) + b"\n")

    Runtime.node_ip = spec.node_ip
    try:
        settings = settings_here(spec, spec.node.settings)
        models = [settings_here(spec, packed) for packed in spec.node.models]

        def announce(url: str, banner: str) -> None:
            say(Word(url=url_here(url, settings.host, spec.node_ip)))

        run(settings, announce, models=models)
    except MaestraleError as error:
        say(Word(failed=str(error)))
        sys.exit(1)


if __name__ == "__main__":
    main()

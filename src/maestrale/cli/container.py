"""The image's entry point (deploy/docker/Dockerfile): `python -P -m maestrale.cli.container`.

Takes what `maestrale` takes; arguments without a command are those of `serve`, so that
`docker run IMAGE --host 0.0.0.0 --model M` works. Two more words serve the image itself:
`health`, for its HEALTHCHECK, and `bake DIR`, by which its build prepares the bundled model.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

MODULE = "maestrale.cli.container"
NEED_VOLUME = ("serve", "pull", "tune")
HEALTH_SECONDS = 8.0


def main() -> int:
    arguments = sys.argv[1:]
    try:
        if arguments == ["health"]:
            return health()
        if arguments[:1] == ["bake"] and len(arguments) == 2:
            return bake(Path(arguments[1]))
        from maestrale.cli.main import run

        arguments = command_line(arguments)
        problem = volume_problem(Path.home()) if arguments[0] in NEED_VOLUME else ""
        if problem and not {"-h", "--help"}.intersection(arguments):
            print(f"maestrale: {problem}", file=sys.stderr)
            return 1
        return run(arguments)
    except KeyboardInterrupt:
        return 130


def command_line(arguments: Sequence[str]) -> list[str]:
    """What `maestrale` is called with: `serve` is put before what names no command."""
    from maestrale.cli.main import COMMANDS

    known = {*COMMANDS, "--version", "--help", "-h"}
    if arguments and arguments[0] in known:
        return list(arguments)
    return ["serve", *arguments]


def volume_problem(folder: Path) -> str:
    """Why nothing can be kept in the volume at `folder`; empty when all is well."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
        return ""
    except OSError as error:
        reason = error.strerror
    user = os.geteuid()
    lines = [
        f"{folder} can't be written by user {user}: {reason}.",
        "Models, and the key that is made at the first start, are kept there.",
    ]
    if folder.is_dir():
        owner = folder.stat().st_uid
        lines.append(f"It belongs to user {owner}. A folder of the host must be this user's:")
        lines.append(f"    sudo chown -R {user} FOLDER        and run with  -v FOLDER:{folder}")
    lines.append(f"Or leave the place to Docker: a named volume,  -v maestrale:{folder}")
    return "\n".join(lines)


def health() -> int:
    """Ask the server in this container how it is. Returns 0 when it takes requests, else 1."""
    # Its port and TLS are told by the arguments that the container was started with.
    words = Path("/proc/1/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    given = words[words.index(MODULE) + 1 :] if MODULE in words else []
    code, detail = ask(address(given, os.environ))
    print(detail)
    return code


def address(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """The /health of a server that was started with these arguments, reached from beside it."""
    from maestrale.cli.serve import command
    from maestrale.config import settings as config
    from maestrale.config.reading import load_settings

    words = command_line(arguments)
    context = command.make_context("serve", words[1:], resilient_parsing=words[0] != "serve")
    flags = {name: value for name, value in context.params.items() if name in config.fields()}
    settings = load_settings(flags, environment, context.params.get("config_file"))
    scheme = "https" if settings.ssl_certfile else "http"
    host = settings.host.strip("[]")
    if host in ("0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}/health"


def ask(url: str) -> tuple[int, str]:
    """(0 or 1, what was answered). Over TLS the certificate is for another name: not checked."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    # No proxy: this is the same machine.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked)
    )
    try:
        with opener.open(url, timeout=HEALTH_SECONDS) as answer:
            return 0, answer.read(500).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return 1, error.read(500).decode(errors="replace")
    except OSError as error:
        return 1, f"{url}: {getattr(error, 'reason', error)}"


def bake(store: Path) -> int:
    """Prepare the bundled model below `store`, as `models/store.py` finds it when shipped. The
    image has no compiler: the wheel that it is built from must have brought the kernel.
    """
    import shutil

    from maestrale.config.settings import BUNDLED_MODEL
    from maestrale.engines.cpu.kernel.build import prebuilt
    from maestrale.models.resolve import prepare

    if prebuilt() is None:
        print(
            "maestrale: the wheel has no CPU kernel for this machine inside. Make it without "
            "HATCH_BUILD_NO_HOOKS, which leaves that out: scripts/release --images ''",
            file=sys.stderr,
        )
        return 1
    folder = prepare(BUNDLED_MODEL, store / "cache", lambda phase, fraction: None)
    # As mkdtemp made it, only its owner may read it.
    folder.chmod(0o755)
    shutil.move(folder, store / folder.name)
    shutil.rmtree(store / "cache")
    return 0


if __name__ == "__main__":
    sys.exit(main())

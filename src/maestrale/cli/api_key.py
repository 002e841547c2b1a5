"""The key that a client sends: from a file or the environment, or from the command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from maestrale.cli.parameters import given_names

MOST_BYTES = 64 << 10


def api_key_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --api-key and --api-key-file; the command gets one argument, `api_key`."""

    @click.option(
        "--api-key",
        envvar="MAESTRALE_API_KEY",
        show_envvar=True,
        help="Key to send. On the command line other users of this machine can see it (ps): the "
        "variable or a file keeps it to you.",
    )
    @click.option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File whose first line is the key to send.",
    )
    @wraps(command)
    def with_key(*, api_key: str | None, api_key_file: Path | None, **given: Any) -> Any:
        if api_key_file is not None:
            if "api_key" in given_names(click.get_current_context()):
                raise click.UsageError("Give the key once: with --api-key or --api-key-file.")
            api_key = read_key(api_key_file)
        return command(api_key=api_key, **given)

    return with_key


def read_key(path: Path) -> str:
    """The first line of a file, without spaces around it. Raises: click.UsageError."""
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(MOST_BYTES).decode()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise click.UsageError(f"--api-key-file: {path} can't be read: {reason}.") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--api-key-file: {path} is no text.") from error
    key = text.lstrip("\ufeff").strip().partition("\n")[0].strip()
    if not key:
        raise click.UsageError(f"--api-key-file: {path} is empty.")
    return key

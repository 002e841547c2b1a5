"""`maestrale version`: what runs here, for a bug report."""

from __future__ import annotations

import importlib.metadata
import json
import platform

import click

from maestrale import __version__
from maestrale.cli.echo import echo

PARTS = ("mistral-common", "tokenizers", "llguidance", "starlette", "uvicorn")


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def command(as_json: bool) -> None:
    """Show the versions of maestrale and what it runs on."""
    versions = {
        "maestrale": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    versions |= {part: importlib.metadata.version(part) for part in PARTS}
    if as_json:
        echo(json.dumps(versions))
        return
    width = max(map(len, versions))
    for name, version in versions.items():
        echo(f"{name:{width}}  {version}")

"""`maestrale models`: the models on the disk: list, show, fetch and remove them."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from maestrale.cli.echo import echo
from maestrale.cli.pull import command as pull
from maestrale.config.hub import hub_settings
from maestrale.config.reading import load_settings
from maestrale.errors import ModelError

if TYPE_CHECKING:
    from maestrale.models.inventory import StoredModel


@click.group("models")
def command() -> None:
    """List, show, fetch and remove the models on this machine's disk."""


command.add_command(pull)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(as_json: bool) -> None:
    """Show each model: its size, the engines that read it, and when it was read last.

    Those in the hub's cache, which other tools share, and those that come with maestrale.
    """
    from maestrale.models.inventory import stored_models
    from maestrale.models.transfer import shown_bytes

    found = stored_models(hub_settings(os.environ).cache)
    if as_json:
        echo(json.dumps([_row(each) for each in found]))
        return
    if not found:
        echo("No models here. Fetch one: maestrale pull MODEL")
        return
    width = max(len(each.name) for each in found)
    for each in found:
        state = "incomplete: pull goes on" if each.partial else f"read {_day(each)}"
        engines = ", ".join(each.engines) or "-"
        echo(f"{each.name:{width}}  {shown_bytes(each.size):>8}  {engines:9}  {state}")


@command.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(model: str, as_json: bool) -> None:
    """Tell what is known of MODEL: a name, a .gguf file or a folder. Nothing is loaded."""
    from maestrale.models.describe import describe
    from maestrale.models.inventory import find_stored, gguf_of
    from maestrale.models.transfer import shown_bytes

    hub = hub_settings(os.environ)
    described = describe(model, hub)
    facts: dict[str, object] = {
        "name": described.name,
        "told_by": described.source,
        "parameters": described.shape.parameters,
        "context_tokens": described.shape.context,
        "layers": described.shape.layers,
        "weight_type": described.weight_type,
        "weights_bytes": described.weights,
    }
    path = _local_gguf(model)
    try:
        stored = find_stored(hub.cache, model)
        facts |= {"disk_bytes": stored.size, "files": list(stored.files)}
        path = path or gguf_of(stored)
    except ModelError:
        pass  # not fetched, or no model of the cache
    facts |= _of_gguf(path) if path is not None else {}
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    if as_json:
        echo(json.dumps(known))
        return
    for name, value in known.items():
        if name.endswith("_bytes") and isinstance(value, int):
            value = shown_bytes(value)
        elif isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, int):
            value = f"{value:,}"
        echo(f"{name.removesuffix('_bytes').replace('_', ' '):16}{value}")


@command.command()
@click.argument("model")
@click.option("--yes", is_flag=True, help="Don't ask.")
def rm(model: str, yes: bool) -> None:
    """Delete MODEL from the hub's cache, for all tools that share it.

    A server that has it loaded goes on until it is unloaded.
    """
    from maestrale.models.inventory import find_stored, remove
    from maestrale.models.transfer import shown_bytes

    found = find_stored(hub_settings(os.environ).cache, model)
    if not yes and found.folder is not None:
        click.confirm(f"Delete {found.name}, {shown_bytes(found.size)}?", abort=True)
    freed = remove(found, load_settings({}, os.environ).cache_dir)
    echo(f"Removed {found.name}: {shown_bytes(freed)}.")


def _local_gguf(model: str) -> Path | None:
    """The GGUF file that `model` names on this machine, or that its folder has."""
    from maestrale.models.local import gguf_in, local_path

    path = local_path(model)
    if path is not None and path.is_dir():
        picked = gguf_in(path)
        path = path / picked.weights if picked is not None else None
    return path if path is not None and path.is_file() else None


def _of_gguf(path: Path) -> dict[str, object]:
    """What the head of a GGUF file tells: the types of its weights, the one with most first."""
    from maestrale.models.gguf_file import read_gguf_model

    file = read_gguf_model(path)
    template = file.metadata.get("tokenizer.chat_template")
    sizes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.type] += tensor.size
    return {
        "architecture": file.metadata.get("general.architecture"),
        "weight_type": [name for name, _ in sizes.most_common()],
        "licence": file.metadata.get("general.license"),
        "chat_template": f"{len(template):,} characters" if isinstance(template, str) else "none",
    }


def _row(model: StoredModel) -> dict[str, object]:
    row = dataclasses.asdict(model)
    return {**row, "folder": None if model.folder is None else str(model.folder)}


def _day(model: StoredModel) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(model.used))

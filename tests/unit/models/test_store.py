"""The store of prepared models: built once, whole or not at all, whoever asks at the same time."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestrale.errors import ModelError
from maestrale.models.prepared import (
    METADATA_FILE,
    MOST_READ,
    PreparedModel,
    damage,
    load_prepared,
    save_prepared,
)
from maestrale.models.store import build_once, digest_of

DIGEST = "ab" * 32


def quiet(phase: str, fraction: float | None) -> None:
    """Progress that nobody looks at."""


def fill(folder: Path) -> None:
    (folder / "weights").write_bytes(b"x" * 100)
    prepared = PreparedModel(
        name="m",
        context_length=8,
        vocab_size=4,
        eos_token_ids=(1,),
        tokenizer_kind="hf",
        tokenizer_file="tokenizer.json",
        weights_digest=DIGEST,
    )
    save_prepared(prepared, folder)


def fail(folder: Path) -> None:
    (folder / "weights").write_bytes(b"half")
    raise ModelError("the file is broken")


def never(folder: Path) -> None:
    raise AssertionError("built again")


def test_a_model_is_built_once(tmp_path: Path) -> None:
    first = build_once(tmp_path, DIGEST, fill, quiet)
    assert build_once(tmp_path, DIGEST, never, quiet) == first
    assert (first / "weights").read_bytes() == b"x" * 100


def test_a_failed_build_leaves_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="broken"):
        build_once(tmp_path, DIGEST, fail, quiet)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert build_once(tmp_path, DIGEST, fill, quiet).is_dir()


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    target = build_once(tmp_path, DIGEST, fill, quiet)
    partial = target.with_name(target.name + ".partial-x1")
    target.rename(partial)
    (partial / "stray").write_bytes(b"from the killed build")
    assert build_once(tmp_path, DIGEST, fill, quiet) == target
    assert not partial.exists()
    assert not (target / "stray").exists()


@pytest.mark.parametrize("damage", [b"", b"x" * 99])
def test_a_damaged_model_is_built_anew(tmp_path: Path, damage: bytes) -> None:
    target = build_once(tmp_path, DIGEST, fill, quiet)
    (target / "weights").write_bytes(damage)
    assert build_once(tmp_path, DIGEST, fill, quiet) == target
    assert (target / "weights").read_bytes() == b"x" * 100


def test_a_model_without_a_file_is_built_anew(tmp_path: Path) -> None:
    target = build_once(tmp_path, DIGEST, fill, quiet)
    (target / "weights").unlink()
    build_once(tmp_path, DIGEST, fill, quiet)
    assert (target / "weights").is_file()


@pytest.mark.parametrize("name", ["weights", METADATA_FILE])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_flipped_byte_anywhere_is_healed(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    store = tmp_path_factory.mktemp("store")
    target = build_once(store, DIGEST, fill, quiet)
    before = load_prepared(target)
    file = target / name
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    build_once(store, DIGEST, fill, quiet)
    assert (target / "weights").read_bytes() == b"x" * 100
    assert load_prepared(target) == before


def test_the_log_says_what_was_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = build_once(tmp_path, DIGEST, fill, quiet)
    (target / "weights").write_bytes(b"y" * 100)
    build_once(tmp_path, DIGEST, fill, quiet)
    assert f"{target / 'weights'} has other bytes" in caplog.text


@pytest.mark.parametrize("error", [PermissionError, MemoryError, InterruptedError])
def test_another_error_is_no_damage(
    tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = build_once(tmp_path, DIGEST, fill, quiet)

    def refuse(self: Path) -> bytes:
        raise error(errno.EACCES, "not now", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(error):
            build_once(tmp_path, DIGEST, never, quiet)
    assert build_once(tmp_path, DIGEST, never, quiet) == target
    assert damage(target) is None


def test_another_version_is_said_as_such(tmp_path: Path) -> None:
    target = build_once(tmp_path, DIGEST, fill, quiet)
    (target / METADATA_FILE).write_text('{"name": "m", "format_version": 1, "other": true}')
    with pytest.raises(ModelError, match="another version"):
        load_prepared(target)
    (target / METADATA_FILE).write_text('{"name": "m"}')
    with pytest.raises(ModelError, match="not a prepared model"):
        load_prepared(target)


def test_large_files_are_compared_by_size(tmp_path: Path) -> None:
    def large(folder: Path) -> None:
        with (folder / "large").open("wb") as file:
            file.truncate(MOST_READ + 1)
        fill(folder)

    target = build_once(tmp_path, DIGEST, large, quiet)
    assert set(load_prepared(target).digests) == {"weights"}
    assert damage(target) is None
    with (target / "large").open("r+b") as file:
        file.truncate(MOST_READ)
    assert "large has" in str(damage(target))


def test_of_two_who_ask_at_once_one_builds(tmp_path: Path) -> None:
    building, go_on = threading.Event(), threading.Event()
    said: list[str] = []
    results: list[Path] = []

    def slowly(folder: Path) -> None:
        building.set()
        assert go_on.wait(60)
        fill(folder)

    def wait(phase: str, fraction: float | None) -> None:
        said.append(phase)
        go_on.set()  # the second is waiting: let the first finish

    first = threading.Thread(
        target=lambda: results.append(build_once(tmp_path, DIGEST, slowly, quiet))
    )
    first.start()
    assert building.wait(60)
    results.append(build_once(tmp_path, DIGEST, never, wait))
    first.join()
    assert results[0] == results[1]
    assert said == ["Waiting for another process that works on this model"]


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    phases: list[str] = []

    def note(phase: str, fraction: float | None) -> None:
        phases.append(phase)

    first = digest_of(file, tmp_path, note)
    assert digest_of(file, tmp_path, note) == first
    assert len(phases) == 1
    file.write_bytes(b"three")
    assert digest_of(file, tmp_path, note) != first

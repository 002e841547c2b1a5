"""User-data: where the machine takes maestrale from, and what its set-up is told."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from maestrale.cli.setup import command
from maestrale.errors import SettingsError
from maestrale.machine import source as sources
from maestrale.machine.setup import cloud_init
from maestrale.machine.setup.cloud_init import KEY_FILE, SCRIPT_FILE, user_data
from maestrale.machine.setup.plan import SetupOptions
from maestrale.machine.source import Source

IMAGE = "registry.example.org/maestrale:0.1.0-cuda"


def from_(monkeypatch: pytest.MonkeyPatch, kind: sources.SourceKind, value: str) -> None:
    for module in (cloud_init, sources):
        monkeypatch.setattr(module, "installed_from", lambda: Source(kind, value))


def document(options: SetupOptions, source: str | None) -> dict[str, Any]:
    text = user_data(options, source)
    assert text.startswith("#cloud-config\n")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def script(options: SetupOptions, source: str | None) -> str:
    files = document(options, source)["write_files"]
    return next(one["content"] for one in files if one["path"] == SCRIPT_FILE)


def set_up(text: str) -> dict[str, Any]:
    """What `maestrale setup` is told in the script's last line, as it reads it itself."""
    words = shlex.split(text.strip().splitlines()[-1])
    assert (words[:3], words[-1]) == (["exec", "maestrale", "setup"], "$@")
    given = command.make_context("setup", words[3:-1]).params
    return {name: value for name, value in given.items() if value not in (None, False)}


def test_a_git_address_is_cloned_at_its_reference() -> None:
    text = script(SetupOptions(), "git+https://example.org/m.git@v0.1.0")
    assert "git clone --quiet https://example.org/m.git $new && " in text
    assert "git -C $new checkout --quiet v0.1.0 -- && mv" in text
    assert set_up(text) == {"reboot": True, "service": True, "wait_for_apt": 1800}


def test_a_version_comes_from_the_index() -> None:
    assert "'maestrale[machine]==0.1.0'" in script(SetupOptions(), "==0.1.0")


@pytest.mark.parametrize("cpu", [False, True])
def test_an_image_is_what_serves(cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from_(monkeypatch, "published", "0.2.0")
    text = script(SetupOptions(cpu=cpu), IMAGE)
    assert "'maestrale[machine]==0.2.0'" in text
    told = set_up(text)
    assert told["source"] == IMAGE
    assert told.get("cpu", False) is cpu


def test_a_mirror_and_its_key_go_along(tmp_path: Path) -> None:
    options = SetupOptions(nvidia_repository="https://example.org/n/", nvidia_key="a\nkey\n")
    files = {one["path"]: one for one in document(options, "==0.1.0")["write_files"]}
    assert (files[KEY_FILE]["content"], files[KEY_FILE]["permissions"]) == ("a\nkey\n", "0644")
    told = set_up(files[SCRIPT_FILE]["content"])
    assert told["nvidia_repository"] == "https://example.org/n/"
    assert str(told["nvidia_key"]) == KEY_FILE


def checkout(folder: Path, origin: str) -> Path:
    for words in (
        ["init", "-q"],
        ["remote", "add", "origin", origin],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "t"],
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def test_a_checkout_is_known_by_its_public_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_(monkeypatch, "checkout", str(checkout(tmp_path, "https://example.org/m.git")))
    for source in (None, IMAGE):
        text = script(SetupOptions(), source)
        assert "git clone --quiet https://example.org/m.git $new" in text
        assert set_up(text).get("source") == source


@pytest.mark.parametrize("origin", ["git@example.org:m.git", "https://me:secret@example.org/m.git"])
@pytest.mark.parametrize("source", [None, IMAGE])
def test_one_that_no_other_machine_can_fetch_is_refused(
    origin: str, source: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_(monkeypatch, "checkout", str(checkout(tmp_path, origin)))
    with pytest.raises(SettingsError, match=r"has no public address.*--source a git URL") as caught:
        user_data(SetupOptions(), source)
    assert "secret" not in str(caught.value)


def test_a_wheel_of_this_machine_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "maestrale-0.1.0-py3-none-any.whl"
    wheel.touch()
    with pytest.raises(SettingsError, match="lies on this machine, and user-data is too small"):
        user_data(SetupOptions(), str(wheel))


def test_more_than_clouds_take_is_refused() -> None:
    with pytest.raises(SettingsError, match="clouds take 16384"):
        user_data(SetupOptions(nvidia_key="k" * 20_000), "==0.1.0")


def test_the_command_prints_it() -> None:
    done = CliRunner().invoke(command, ["--cloud-init", "--source", "==0.1.0"])
    assert done.output == user_data(SetupOptions(), "==0.1.0")

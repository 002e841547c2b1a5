from __future__ import annotations

import json
import logging
import multiprocessing
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from maestrale.cli.keys import command
from maestrale.config.settings import Settings
from maestrale.errors import AuthenticationFailed, MaestraleError, SettingsError
from maestrale.keys import (
    KeyStore,
    add_key,
    kept_key,
    moment_of,
    new_key,
    read_keys,
    revoke_key,
    rotate_key,
)
from maestrale.serve.server import key_to_make


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "maestrale" / "keys.json"


def test_a_key_is_known_by_its_digest_only(path: Path) -> None:
    secret = add_key(path, "alice", requests_per_minute=10, tokens_per_minute=1000)
    text = path.read_text()
    assert secret not in text
    assert secret[len("sk-maestrale-") + 4 :] not in text
    key = KeyStore(path=path).authenticate(secret.encode())
    assert key is not None
    assert (key.name, key.requests_per_minute, key.tokens_per_minute) == ("alice", 10, 1000)
    assert secret.startswith(key.prefix)
    assert len(secret) - len(key.prefix) > 32


def test_only_the_owner_may_read_and_nothing_else_is_left(path: Path) -> None:
    add_key(path, "alice")
    add_key(path, "bob")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["keys.json"]


@pytest.mark.parametrize(
    "change", ["prefix", "longer", "case", "empty", "other", "bytes", "digest"]
)
def test_what_is_not_the_key(path: Path, change: str) -> None:
    secret = add_key(path, "alice")
    presented = {
        "prefix": secret[:-1].encode(),
        "longer": (secret + "a").encode(),
        "case": secret.swapcase().encode(),
        "empty": b"",
        "other": new_key().encode(),
        "bytes": b"\xff" * 1_000_000,
        "digest": read_keys(path)[0].sha256.encode(),
    }[change]
    assert KeyStore(path=path).authenticate(presented) is None


def test_keys_given_in_the_settings_need_no_file() -> None:
    store = KeyStore(["one", "two"])
    assert store.required
    one, two = store.authenticate(b"one"), store.authenticate(b"two")
    assert one is not None
    assert two is not None
    assert one.name != two.name
    assert "one" not in (one.name, one.prefix, one.sha256)
    assert store.authenticate(b"three") is None
    assert not KeyStore().required


def test_changes_are_taken_up_within_a_second(path: Path) -> None:
    alice = add_key(path, "alice").encode()
    clock = Clock()
    store = KeyStore(["given"], path, clock=clock)
    bob = add_key(path, "bob").encode()
    revoke_key(path, "alice")
    assert store.authenticate(alice) is not None
    assert store.authenticate(bob) is None
    clock.now += 1
    assert store.authenticate(alice) is None
    found = store.authenticate(bob)
    assert found is not None
    assert found.name == "bob"
    assert store.authenticate(b"given") is not None


def test_the_file_is_looked_at_once_a_second_at_most(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_key(path, "alice")
    clock = Clock()
    store = KeyStore(path=path, clock=clock)
    looks = []
    real = Path.stat

    def counted(self: Path, **kwargs: bool) -> os.stat_result:
        looks.append(self)
        return real(self, **kwargs)

    monkeypatch.setattr(Path, "stat", counted)
    for _ in range(100):
        clock.now += 0.05
        store.authenticate(b"x")
    assert 1 <= len(looks) <= 5


def test_a_file_that_appears_later_makes_keys_required(path: Path) -> None:
    clock = Clock()
    store = KeyStore(path=path, clock=clock)
    assert not store.required
    secret = add_key(path, "alice")
    clock.now += 1
    assert store.required
    assert store.authenticate(secret.encode()) is not None


def test_the_last_key_revoked_lets_nobody_in(path: Path) -> None:
    secret = add_key(path, "alice")
    revoke_key(path, "alice")
    store = KeyStore(path=path)
    assert store.required
    assert store.authenticate(secret.encode()) is None


def damage(path: Path, how: str) -> None:
    good = json.loads(path.read_text())
    match how:
        case "gone":
            path.unlink()
            return
        case "others write":
            path.chmod(0o666)
            return
        case "a folder":
            path.unlink()
            path.mkdir()
            return
        case "half":
            text = path.read_text()[:50]
        case "empty":
            text = ""
        case "version":
            text = json.dumps({**good, "version": 3})
        case "unknown field":
            text = json.dumps({**good, "keys": [{**good["keys"][0], "admin": True}]})
        case "digest":
            text = json.dumps({**good, "keys": [{**good["keys"][0], "sha256": "abc"}]})
        case "name":
            text = json.dumps({**good, "keys": [{**good["keys"][0], "name": "a\nb"}]})
        case "limit":
            text = json.dumps({**good, "keys": [{**good["keys"][0], "tokens_per_minute": 0}]})
        case "two of a name":
            text = json.dumps({**good, "keys": [good["keys"][0]] * 2})
    path.write_text(text)


DAMAGE = [
    "others write", "a folder", "half", "empty", "version", "unknown field", "digest", "name",
    "limit", "two of a name",
]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_broken_file_is_an_error_at_the_start(path: Path, how: str) -> None:
    add_key(path, "alice")
    damage(path, how)
    with pytest.raises(SettingsError, match=r"keys\.json"):
        KeyStore(path=path)


@pytest.mark.parametrize("how", ["gone", *DAMAGE])
def test_a_file_that_breaks_later_changes_nothing(
    path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = add_key(path, "alice").encode()
    clock = Clock()
    store = KeyStore(path=path, clock=clock)
    damage(path, how)
    clock.now += 1
    with caplog.at_level(logging.WARNING, "maestrale"):
        assert store.authenticate(secret) is not None
        assert store.required
        assert store.authenticate(b"") is None
    assert "stay as they were" in caplog.text
    assert secret.decode() not in caplog.text


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "ä", "-a", "a" * 65, "../a"])
def test_odd_names_are_refused(path: Path, name: str) -> None:
    with pytest.raises(MaestraleError, match="name"):
        add_key(path, name)
    assert not path.exists()


def test_names_are_unique_and_known(path: Path) -> None:
    add_key(path, "alice")
    with pytest.raises(MaestraleError, match="alice already"):
        add_key(path, "alice")
    with pytest.raises(MaestraleError, match="there is: alice"):
        revoke_key(path, "bob")


def _add_five(path: Path, first: int) -> None:
    for number in range(first, first + 5):
        add_key(path, f"key{number}")


def test_processes_that_add_at_once_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_five, args=(path, n * 5)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert {key.name for key in read_keys(path)} == {f"key{n}" for n in range(15)}


def test_the_command_line(path: Path) -> None:
    runner = CliRunner()
    file = ["--file", str(path)]
    assert "No keys" in runner.invoke(command, ["list", *file]).output
    made = runner.invoke(command, ["add", "alice", "--requests-per-minute", "5", *file])
    assert made.exit_code == 0
    secret = made.stdout.strip()
    assert KeyStore(path=path).authenticate(secret.encode()) is not None
    listed = runner.invoke(command, ["list", *file]).output
    assert "alice" in listed
    assert "5 requests/min" in listed
    assert secret not in listed
    rows = json.loads(runner.invoke(command, ["list", "--json", *file]).output)
    assert rows[0]["name"] == "alice"
    assert "sha256" not in rows[0]
    assert runner.invoke(command, ["revoke", "alice", *file]).exit_code == 0
    assert KeyStore(path=path).authenticate(secret.encode()) is None
    assert runner.invoke(command, ["add", "bob", "--tokens-per-minute", "0"]).exit_code == 2
    operator = runner.invoke(command, ["add", "carol", "--operator", *file]).stdout.strip()
    found = KeyStore(path=path).authenticate(operator.encode())
    assert found is not None
    assert found.operator
    assert "no limits, operator" in runner.invoke(command, ["list", *file]).output


def test_a_key_ends_when_it_shall(path: Path) -> None:
    secret = add_key(path, "alice", expires="2030-12-31T00:00:00Z").encode()
    end = moment_of("2030-12-31")
    assert KeyStore(path=path, now=lambda: end - 1).authenticate(secret) is not None
    with pytest.raises(AuthenticationFailed, match="2030-12-31T00:00:00Z") as caught:
        KeyStore(path=path, now=lambda: end).authenticate(secret)
    assert caught.value.code == "key_expired"


def test_a_rotated_key_has_no_gap(path: Path) -> None:
    first = add_key(path, "alice", tokens_per_day=5, models=("a",))
    old = KeyStore(path=path).authenticate(first.encode())
    second, until = rotate_key(path, "alice", 3600)
    third, _ = rotate_key(path, "alice", 7200)
    now = moment_of(until)
    for secret in (first, second, third):
        key = KeyStore(path=path, now=lambda: now - 1).authenticate(secret.encode())
        assert key is not None
        assert old is not None
        assert (key.name, key.tokens_per_day, key.models) == ("alice", 5, ("a",))
        assert key.identity == old.identity == old.sha256
    later = KeyStore(path=path, now=lambda: now)
    with pytest.raises(AuthenticationFailed, match="replaced") as caught:
        later.authenticate(first.encode())
    assert caught.value.code == "key_expired"
    assert later.authenticate(second.encode()) is not None
    assert not later.several
    rotate_key(path, "alice", 0)
    with pytest.raises(AuthenticationFailed, match="replaced"):
        KeyStore(path=path).authenticate(third.encode())
    with pytest.raises(MaestraleError, match="there is: alice"):
        rotate_key(path, "bob", 0)


def test_what_is_old_stays_readable_by_old_programs(path: Path) -> None:
    """A file is of version 2 once a key has what version 1 doesn't know."""
    add_key(path, "alice", requests_per_minute=5)
    assert json.loads(path.read_bytes())["version"] == 1
    add_key(path, "bob", tokens_per_month=5)
    assert json.loads(path.read_bytes())["version"] == 2
    assert [key.tokens_per_month for key in read_keys(path)] == [None, 5]
    revoke_key(path, "bob")
    assert json.loads(path.read_bytes())["version"] == 1


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"expires": "soon"}, "'soon' of alice is no moment"),
        ({"tokens_per_day": 0}, "limits of alice"),
        ({"replaced": [{"sha256": "x", "until": "2030-12-31"}]}, "SHA-256"),
        ({"replaced": [{"sha256": "aa" * 32, "until": "x"}]}, "no moment"),
    ],
)
def test_what_a_person_wrote_wrong(path: Path, more: dict[str, Any], match: str) -> None:
    add_key(path, "alice")
    file = json.loads(path.read_bytes())
    file["keys"][0] |= more
    path.write_text(json.dumps({**file, "version": 2}))
    with pytest.raises(SettingsError, match=match):
        read_keys(path)


def test_terms_on_the_command_line(path: Path) -> None:
    runner = CliRunner()
    file = ["--file", str(path)]
    terms = ["--tokens-per-day", "9", "--requests-per-month", "8", "--model", "a", "--model", "b"]
    made = runner.invoke(command, ["add", "alice", *terms, "--expires", "2030-12-31", *file])
    assert made.exit_code == 0, made.output
    [key] = read_keys(path)
    assert (key.tokens_per_day, key.requests_per_month, key.models) == (9, 8, ("a", "b"))
    assert key.expires == "2030-12-31T00:00:00Z"
    rotated = runner.invoke(command, ["rotate", "alice", "--overlap", "2h", *file])
    assert rotated.exit_code == 0
    store = KeyStore(path=path)
    for secret in (made.stdout, rotated.stdout):
        assert store.authenticate(secret.strip().encode()) is not None
    listed = runner.invoke(command, ["list", *file]).output
    assert "8 requests/month, 9 tokens/day, for a b, until 2030-12-31T00:00:00Z" in listed
    assert "… until 20" in listed
    [row] = json.loads(runner.invoke(command, ["list", "--json", *file]).output)
    assert row["tokens_per_day"] == 9
    assert "sha256" not in json.dumps(row)
    runner.invoke(command, ["add", "bob", "--expires", "30d", *file])
    left = moment_of(read_keys(path)[1].expires) - time.time()
    assert 29.9 * 86400 < left <= 30 * 86400
    for wrong in ("soon", "2030-13-01", "999999999d", ""):
        refused = runner.invoke(command, ["add", "carol", "--expires", wrong, *file])
        assert refused.exit_code == 2, wrong
    for wrong in ("-1", "soon", "999999999d"):
        refused = runner.invoke(command, ["rotate", "bob", "--overlap", wrong, *file])
        assert refused.exit_code == 2, wrong


def test_the_default_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path.parent.parent))
    assert CliRunner().invoke(command, ["add", "alice"]).exit_code == 0
    assert [key.name for key in read_keys(path)] == ["alice"]


def test_a_made_key_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "api-key"
    key = kept_key(path)
    assert key.startswith("sk-maestrale-")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept_key(path) == key


def test_a_kept_key_that_is_not_right_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api-key"
    path.write_text("")
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="holds no key: remove it"):
        kept_key(path)
    path.write_text("sk-maestrale-0123456789\n")
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        kept_key(path)
    path.chmod(0o600)
    assert kept_key(path) == "sk-maestrale-0123456789"
    with pytest.raises(SettingsError, match=r"can't be (used|kept)"):
        kept_key(Path("/proc/api-key"))


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "127.0.0.1"}, False),
        ({"host": "0.0.0.0", "no_auth": True}, False),
        ({"host": "0.0.0.0", "api_key": ("sk-given-by-a-person",)}, False),
    ],
)
def test_when_a_key_is_made_and_kept(
    settings: dict[str, Any], made: bool, tmp_path: Path, path: Path
) -> None:
    kept = tmp_path / "api-key"
    complete = Settings(**settings, made_key_file=kept, key_file=path)
    key = key_to_make(complete)
    assert bool(key) == made
    assert kept.exists() == made
    if made:
        # A key added later does not end the kept one; without a kept one none is made.
        add_key(path, "alice")
        assert key_to_make(complete) == key
        assert key_to_make(replace(complete, made_key_file=None)) == ""


def test_a_byte_order_mark_is_no_part_of_the_file(path: Path) -> None:
    key = add_key(path, "alice")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert KeyStore(path=path).authenticate(key.encode()) is not None

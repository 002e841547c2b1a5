"""Fetching from a hub: the real client against a stand-in, with everything that goes wrong."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from maestrale.config.hub import HubSettings
from maestrale.errors import AccessDenied, HubUnreachable, ModelError
from maestrale.models import snapshot, transfer
from maestrale.models.download import Pulled, pull
from stand_in_hub import COMMIT, GOOD_TOKEN, STRANGER, Repo, StandInHub, sha256, stand_in_hub

WEIGHTS = os.urandom(900_000)
FILES = {
    "README.md": b"# A model",
    "config.json": b'{"architectures": ["MistralForCausalLM"]}',
    "tokenizer.json": b"{}" + b" " * 2000,
    "model-00001-of-00001.safetensors": WEIGHTS,
    "consolidated.safetensors": b"the same again" * 1000,
    "pytorch_model.bin": b"a pickle" * 1000,
    "original/params.json": b"{}",
}
SMALL_ENOUGH = 5.0  # seconds for any refusal


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    repos = {
        "org__open": Repo(dict(FILES)),
        "org__gated": Repo(dict(FILES), gated=True),
        "org__bare": Repo(dict(FILES), bare_listing=True),
        "org__secret": Repo(dict(FILES), private=True),
        "mistralai__Mistral-7B-Instruct-v0.2": Repo(dict(FILES), gated=True),
        "org__pickled": Repo({"config.json": b"{}", "pytorch_model.bin": b"x"}),
        "org__empty": Repo({"README.md": b"nothing"}),
    }
    with stand_in_hub(**repos) as running:
        yield running


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PAUSES", (0.01,))


def fetch(
    hub: StandInHub,
    cache: Path,
    repo: str = "org/open",
    *,
    token: str | None = None,
    revision: str | None = None,
    engine: str = "vllm",
    offline: bool = False,
    refresh: bool = True,
    said: list[tuple[str, float | None]] | None = None,
) -> Pulled:
    settings = HubSettings(
        cache=cache,
        endpoint=hub.url,
        token=token,
        token_source="HF_TOKEN" if token else "",
        offline=offline,
    )
    heard = said if said is not None else []
    return pull(
        repo,
        settings,
        lambda text, fraction: heard.append((text, fraction)),
        engine=engine,
        revision=revision,
        refresh=refresh,
    )


def test_only_what_the_engine_needs_is_fetched(hub: StandInHub, tmp_path: Path) -> None:
    said: list[tuple[str, float | None]] = []
    pulled = fetch(hub, tmp_path, said=said)
    assert set(pulled.names) == {
        "config.json",
        "tokenizer.json",
        "model-00001-of-00001.safetensors",
    }
    assert pulled.weights.read_bytes() == WEIGHTS
    assert pulled.commit == COMMIT
    assert {path.name for path in pulled.snapshot.iterdir()} == set(pulled.names)
    # the layout that the hub's other tools share
    assert pulled.weights.resolve().name == sha256(WEIGHTS)
    assert (tmp_path / "models--org--open" / "refs" / "main").read_text() == COMMIT
    text, fraction = said[-1]
    assert fraction == 1.0
    assert "Downloading org/open (3 files): " in text
    assert "of 902.0 kB" in text
    assert "/s, 0 s left" in text


def test_the_hubs_own_client_finds_what_was_fetched(hub: StandInHub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    pulled = fetch(hub, tmp_path)
    found = snapshot_download("org/open", cache_dir=tmp_path, local_files_only=True)
    assert Path(found) == pulled.snapshot


def test_what_is_here_is_not_fetched_again(hub: StandInHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    sent, asked = hub.sent, len(hub.requests)
    assert fetch(hub, tmp_path).fetched == 0
    assert hub.sent == sent
    asked = len(hub.requests)
    fetch(hub, tmp_path, refresh=False)
    fetch(hub, tmp_path, offline=True)
    assert len(hub.requests) == asked


def test_one_gguf_is_picked_with_all_its_parts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = ("m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf")
    files = {name: os.urandom(2000) for name in (*parts, "m-Q8_0.gguf", "mmproj-m-f16.gguf")}
    caplog.set_level("INFO", "maestrale")
    with stand_in_hub(org__ggufs=Repo(files)) as hub:
        pulled = fetch(hub, tmp_path, "org/ggufs", engine="cpu")
        assert pulled.names == parts
        assert (pulled.kind, pulled.weights.name) == ("gguf", parts[0])
        assert "m-Q4_K_M-00001-of-00002.gguf is taken. There are also Q8_0" in caplog.text
        (pulled.snapshot / parts[1]).unlink()  # as if the download had been cut off
        assert fetch(hub, tmp_path, "org/ggufs", engine="cpu", refresh=False).names == parts
        assert (pulled.snapshot / parts[1]).read_bytes() == files[parts[1]]


def flip(file: Path) -> None:
    blob = file.resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)


NEEDED = ("config.json", "tokenizer.json", "model-00001-of-00001.safetensors")


@pytest.mark.parametrize("refresh", [True, False])
@pytest.mark.parametrize("name", NEEDED)
def test_what_is_damaged_here_is_fetched_again(
    hub: StandInHub, tmp_path: Path, name: str, refresh: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pulled = fetch(hub, tmp_path)
    flip(pulled.snapshot / name)
    again = fetch(hub, tmp_path, refresh=refresh)
    assert again.fetched == len(FILES[name])
    assert all((again.snapshot / one).read_bytes() == FILES[one] for one in NEEDED)
    assert f"{name} is damaged" in caplog.text
    assert fetch(hub, tmp_path, refresh=refresh).fetched == 0


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_damaged_and_cannot_be_fetched_is_named_and_kept(
    hub: StandInHub, tmp_path: Path, name: str
) -> None:
    pulled = fetch(hub, tmp_path)
    flip(pulled.snapshot / name)
    damaged = (pulled.snapshot / name).read_bytes()
    with pytest.raises(ModelError, match=rf"{name} is damaged.*HF_HUB_OFFLINE"):
        fetch(hub, tmp_path, offline=True)
    hub.faults.api_statuses = [503] * 20
    with pytest.raises(HubUnreachable, match=rf"{name} is damaged.*can't be fetched again"):
        fetch(hub, tmp_path, refresh=False)
    assert (pulled.snapshot / name).read_bytes() == damaged


def test_a_large_file_is_read_once_and_when_it_changed(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MOST_READ", 100_000)
    said: list[tuple[str, float | None]] = []
    pulled = fetch(hub, tmp_path)
    fetch(hub, tmp_path, refresh=False, said=said)
    assert said == []  # it was checked as it came
    (tmp_path / "models--org--open" / snapshot.NOTES).write_bytes(b"\xff")
    fetch(hub, tmp_path, refresh=False, said=said)  # as in a cache that another tool filled
    assert ("Checking the model's files", 1.0) in said
    said.clear()
    fetch(hub, tmp_path, refresh=False, said=said)
    assert said == []
    flip(pulled.weights)
    assert fetch(hub, tmp_path, refresh=False).fetched == len(WEIGHTS)


def test_a_cache_that_cannot_be_read_is_not_damaged(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = fetch(hub, tmp_path)
    real = Path.open

    def refuse(self: Path, *arguments: Any, **more: Any) -> IO[Any]:
        if self.parent.name == "blobs":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(ModelError, match="can't be read: Permission denied"):
            fetch(hub, tmp_path, refresh=False)
    assert pulled.weights.read_bytes() == WEIGHTS


def test_a_file_that_somebody_put_there_is_theirs(hub: StandInHub, tmp_path: Path) -> None:
    pulled = fetch(hub, tmp_path)
    own = pulled.snapshot / "config.json"
    own.unlink()
    own.write_bytes(b'{"architectures": ["Mine"]}')
    assert fetch(hub, tmp_path, refresh=False).fetched == 0
    assert b"Mine" in own.read_bytes()


def test_storage_never_sees_the_token(hub: StandInHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path, "org/gated", token=GOOD_TOKEN)
    assert hub.large_transfers()
    assert all("authorization" not in headers for headers in hub.large_transfers())
    first = next(headers for verb, _, headers in hub.requests if verb == "HEAD")
    assert first["authorization"] == f"Bearer {GOOD_TOKEN}"


def test_a_listing_without_sizes_is_completed(hub: StandInHub, tmp_path: Path) -> None:
    pulled = fetch(hub, tmp_path, "org/bare")
    assert pulled.weights.read_bytes() == WEIGHTS
    assert pulled.weights.resolve().name == sha256(WEIGHTS)


def test_cuts_are_resumed_where_they_were(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.cuts = [2002, 100_000, 300_000, 0, 250_000]  # the tokenizer, then the weights
    pulled = fetch(hub, tmp_path)
    assert pulled.weights.read_bytes() == WEIGHTS
    ranges = [headers.get("range") for headers in hub.large_transfers()]
    assert ranges[1:] == [None, *(f"bytes={at}-" for at in (100_000, 400_000, 400_000, 650_000))]
    assert hub.sent == 2002 + len(WEIGHTS)


def test_what_came_before_the_end_of_the_process_is_kept(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.cuts = [2002, 600_000, *[0] * transfer.ATTEMPTS]
    with pytest.raises(HubUnreachable, match="can't be reached"):
        fetch(hub, tmp_path)
    before = hub.sent
    assert list((tmp_path / "models--org--open" / "snapshots" / COMMIT).iterdir())
    with pytest.raises(ModelError, match="in full"):
        fetch(hub, tmp_path, offline=True)
    pulled = fetch(hub, tmp_path)
    assert pulled.weights.read_bytes() == WEIGHTS
    assert hub.sent - before == pulled.fetched == len(WEIGHTS) - 600_000


def test_a_storage_without_ranges_begins_anew(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.cuts, hub.faults.no_ranges = [2002, 500_000], True
    said: list[tuple[str, float | None]] = []
    assert fetch(hub, tmp_path, said=said).weights.read_bytes() == WEIGHTS
    assert said[-1][1] == 1.0


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_storage_out_of_order_is_asked_again(
    hub: StandInHub, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    hub.faults.statuses = [status, status]
    assert fetch(hub, tmp_path).weights.read_bytes() == WEIGHTS
    asked = [pause for pause in pauses if pause]  # the stand-in sleeps as well, for no time
    assert asked == ([1.0, 1.0] if status == 429 else [0.01, 0.01])  # 429 has a Retry-After


def test_a_storage_that_refuses_is_not_asked_again(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.statuses = [403]
    with pytest.raises(AccessDenied):
        fetch(hub, tmp_path)
    assert len(hub.large_transfers()) == 1


def test_damaged_bytes_are_noticed_and_fetched_again(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.damaged = 1
    assert fetch(hub, tmp_path).weights.read_bytes() == WEIGHTS


def test_bytes_damaged_twice_are_refused(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.damaged = 9
    with pytest.raises(ModelError, match="doesn't have the checksum"):
        fetch(hub, tmp_path)
    blobs = tmp_path / "models--org--open" / "blobs"
    assert [path.name for path in blobs.iterdir() if len(path.name) == 64] == []


def test_a_damaged_rest_of_a_former_attempt_is_dropped(hub: StandInHub, tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--open" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(WEIGHTS)}.incomplete").write_bytes(b"wrong" * 1000)
    assert fetch(hub, tmp_path).weights.read_bytes() == WEIGHTS


def test_space_is_checked_first(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 0, 250 << 20))
    with pytest.raises(ModelError, match=r"needs 902\.0 kB more.*are free.*HF_HOME"):
        fetch(hub, tmp_path)
    assert hub.sent == 0


def test_a_revision_has_its_own_files(hub: StandInHub, tmp_path: Path) -> None:
    pulled = fetch(hub, tmp_path, revision="v1.0")
    assert (tmp_path / "models--org--open" / "refs" / "v1.0").read_text() == pulled.commit
    with pytest.raises(ModelError, match=r"no revision 'nope'.*--revision"):
        fetch(hub, tmp_path, revision="nope")


@pytest.mark.parametrize(
    ("repo", "token", "said"),
    [
        ("org/gated", None, r"gated.*no token here.*{url}/org/gated.*{url}/settings/tokens"),
        ("org/gated", "hf_wrong", r"refuses the token in HF_TOKEN.*{url}/settings/tokens"),
        ("org/open", "hf_wrong", r"refuses the token in HF_TOKEN.*{url}/settings/tokens"),
        ("org/gated", STRANGER, r"has no access.*Accept its terms on {url}/org/gated"),
        ("org/nothing", None, r"There is no model org/nothing.*HF_TOKEN.*{url}/models\?search="),
        ("org/nothing", GOOD_TOKEN, r"There is no model org/nothing.*{url}/org/nothing"),
        ("org/secret", STRANGER, r"There is no model org/secret.*the token in HF_TOKEN"),
        ("mistralai/Mistral-7B-Instruct-v0.2", None, r"gated.*no token"),
        ("mistralai/Mistral-7B-Instruct-v0.9", None, r"Did you mean mistralai/Mistral-7B-In"),
        ("org/pickled", None, "pickles"),
        ("org/empty", None, "holds no weights"),
    ],
)
def test_each_refusal_has_its_message_at_once(
    hub: StandInHub, tmp_path: Path, repo: str, token: str | None, said: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(ModelError, match=said.format(url=hub.url)):
        fetch(hub, tmp_path, repo, token=token)
    assert time.monotonic() - begun < SMALL_ENOUGH
    assert hub.sent == 0


def test_a_hub_that_wants_no_more_requests(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.api_statuses = [429]
    with pytest.raises(HubUnreachable, match=r"no more requests.*in 1 seconds.*token"):
        fetch(hub, tmp_path)


def test_a_hub_that_fails(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.api_statuses = [502]
    with pytest.raises(HubUnreachable, match="status 502"):
        fetch(hub, tmp_path)


def test_a_hub_that_answers_too_slowly(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.delay = 30.0
    begun = time.monotonic()
    with pytest.raises(HubUnreachable, match=r"doesn't answer within 4 s"):
        fetch(hub, tmp_path)
    assert time.monotonic() - begun < SMALL_ENOUGH


def test_a_slow_hub_is_waited_for(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.delay, hub.faults.chunk_pause = 0.3, 0.02
    assert fetch(hub, tmp_path).weights.read_bytes() == WEIGHTS


def test_no_network(hub: StandInHub, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub.url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(HubUnreachable, match=r"can't be reached.*HTTPS_PROXY.*HF_HUB_OFFLINE"):
            fetch(hub, tmp_path)


def test_without_a_network_what_is_here_is_taken(hub: StandInHub, tmp_path: Path) -> None:
    pulled = fetch(hub, tmp_path)
    hub.faults.api_statuses = [503]
    assert fetch(hub, tmp_path).snapshot == pulled.snapshot


def test_what_is_no_hub(hub: StandInHub, tmp_path: Path) -> None:
    hub.url += "/elsewhere"
    with pytest.raises(ModelError, match="elsewhere"):
        fetch(hub, tmp_path)


def test_offline_asks_nobody(hub: StandInHub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        fetch(hub, tmp_path, offline=True)
    assert hub.requests == []


def test_names_that_lead_elsewhere_are_refused(hub: StandInHub, tmp_path: Path) -> None:
    hub.repos["org/evil"] = Repo({"config.json": b"{}", "..": b"", "a\\b.safetensors": b"x"})
    with pytest.raises(ModelError, match="can't be kept"):
        fetch(hub, tmp_path, "org/evil")

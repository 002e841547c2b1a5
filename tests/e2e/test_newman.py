"""newman, unmodified, runs the collection; and it agrees with `maestrale verify` on every check."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_chat_server import FAULTS, fake_chat_server
from newman import findings_of, newman_command, run_newman
from serving import Server
from verifying import COLLECTION, ENVIRONMENT, verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

KEY = "sk-a-key-for-newman"


def agree(tmp_path: Path, *faults: str, key: str = "") -> tuple[int, set[str]]:
    """(exit code, the states that occur), after both ran and agreed."""
    with fake_chat_server(*faults, key=key or None) as fake:
        code, theirs, printed = run_newman(
            COLLECTION, ENVIRONMENT, tmp_path, baseUrl=fake.url, apiKey=key
        )
        ours = verify(fake.url, "--json", *(["--api-key", key] if key else []))
    assert findings_of(ours.report) == theirs, printed
    assert ours.code == code
    return code, set(theirs.values())


def test_they_agree_on_a_good_server(tmp_path: Path) -> None:
    assert agree(tmp_path) == (0, {"passed", "skipped"})


def test_they_agree_on_a_good_server_with_a_key(tmp_path: Path) -> None:
    assert agree(tmp_path, key=KEY) == (0, {"passed", "skipped"})  # it has no responses


def test_they_agree_that_a_server_without_a_messages_api_is_not_at_fault(tmp_path: Path) -> None:
    with fake_chat_server(messages=False) as fake:
        code, theirs, printed = run_newman(COLLECTION, ENVIRONMENT, tmp_path, baseUrl=fake.url)
        ours = verify(fake.url, "--json")
    assert findings_of(ours.report) == theirs, printed
    assert code == ours.code == 0
    of_folder = {one["name"] for one in ours.report["requests"] if one["folder"] == "Messages"}
    assert of_folder
    assert of_folder <= ours.skipped()


def test_they_agree_that_a_server_of_embeddings_alone_is_not_at_fault(tmp_path: Path) -> None:
    with fake_chat_server(embeds=True) as fake:
        code, theirs, printed = run_newman(COLLECTION, ENVIRONMENT, tmp_path, baseUrl=fake.url)
        ours = verify(fake.url, "--json")
    assert findings_of(ours.report) == theirs, printed
    assert code == ours.code == 0
    assert ("As base64", "it holds the same numbers, as 32-bit floats", 0) in theirs


def test_they_agree_that_a_reranker_alone_is_not_at_fault(tmp_path: Path) -> None:
    with fake_chat_server(ranks=True) as fake:
        code, theirs, printed = run_newman(COLLECTION, ENVIRONMENT, tmp_path, baseUrl=fake.url)
        ours = verify(fake.url, "--json")
    assert findings_of(ours.report) == theirs, printed
    assert code == ours.code == 0
    assert ("Documents, the best first", "each document once, the best first", 0) in theirs


@pytest.mark.parametrize("fault", FAULTS)
def test_they_agree_on_a_server_made_bad_on_purpose(tmp_path: Path, fault: str) -> None:
    code, states = agree(tmp_path, fault)
    assert code == 1
    assert "failed" in states


@pytest.mark.model
def test_newman_passes_on_our_server(server: Server, tmp_path: Path) -> None:
    newman_command()
    code, found, printed = run_newman(COLLECTION, ENVIRONMENT, tmp_path, baseUrl=server.url)
    assert code == 0, printed
    skipped = {key[0] for key, state in found.items() if state == "skipped"}
    of_others = {"An embedding", "Documents, the best first", "Between two texts"}
    assert skipped == {"A wrong key", *of_others}

"""`maestrale verify` on our own server: a good model passes; noise and a wrong template do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import Server, serving
from tiny_mistral import write_tiny_mistral
from verifying import verify

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(1200)]

KEY = "sk-a-key-for-verify"
WRONG_TEMPLATES = {
    "Mistral's": "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}",
    "none at all": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:",
}


def test_our_server_passes(server: Server, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = verify(server.url, "--json", "--report", str(report))
    assert done.code == 0, done.err
    of_others = {"An embedding", "Documents, the best first", "Between two texts"}
    assert done.skipped() == {"A wrong key", *of_others}, "what needs a key, or another model"
    streams = [one for one in done.report["requests"] if one["folder"] == "Streaming"]
    assert all(one["first_token"] > 0 for one in streams)
    assert "The capital of France is" in report.read_text()


def test_a_server_of_embeddings_alone_passes_and_what_asks_for_answers_is_skipped(
    cache_dir: Path,
) -> None:
    with serving("--task", "embed", cache_dir=cache_dir) as server:
        done = verify(server.url, "--json")
    assert done.code == 0, done.err
    requests = {one["name"]: one for one in done.report["requests"]}
    for name in ("An embedding", "Several at once", "As base64", "No text at all"):
        assert len(requests.pop(name)["assertions"]) > 1
    for name in ("Models", "Health"):
        assert not requests.pop(name)["skipped"]
    (said,) = requests.pop("Does it chat, too?")["assertions"]
    assert said["skipped"]
    assert "embeddings only" in said["name"]
    (unranked,) = requests.pop("Documents, the best first")["assertions"]
    assert unranked["skipped"]
    assert all(one["skipped"] for one in requests.values())


def test_a_wrong_key_is_refused_where_a_key_is_asked_for(cache_dir: Path) -> None:
    with serving("--api-key", KEY, cache_dir=cache_dir) as server:
        done = verify(
            server.url,
            "--api-key",
            KEY,
            "--json",
            "--folder",
            "Is it up",
            "--folder",
            "A wrong key",
        )
    assert done.code == 0, done.err
    assert done.skipped() == set()


@pytest.mark.parametrize("template", WRONG_TEMPLATES)
def test_a_wrong_chat_template_fails(cache_dir: Path, tmp_path: Path, template: str) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(WRONG_TEMPLATES[template])
    with serving("--chat-template", str(file), cache_dir=cache_dir) as server:
        done = verify(server.url, "--json", "--folder", "Simple questions")
    assert done.code == 1, done.err
    assert len({request for request, _ in done.failed()}) > 1, "found by more than one question"


def test_random_weights_fail(cache_dir: Path, tmp_path: Path) -> None:
    model = write_tiny_mistral(tmp_path / "tiny.gguf")
    with serving("--model", str(model), cache_dir=cache_dir) as server:
        done = verify(server.url, "--json")
    assert done.code == 1, done.err
    failed = {request for request, _ in done.failed()}
    assert {"The capital of France", "The opposite of hot", "A stream"} <= failed

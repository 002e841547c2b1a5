"""The image's entry point: what its arguments mean, where it asks for health, its volume."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maestrale.cli import container
from maestrale.models import store
from maestrale.models.prepared import FORMAT_VERSION, PreparedModel, is_intact, save_prepared

GIST = ["--host", "0.0.0.0", "--model", "mistralai/Mistral-7B-Instruct-v0.2"]
IN_IMAGE = {"MAESTRALE_HOST": "0.0.0.0", "MAESTRALE_MADE_KEY_FILE": "/data/api-key", "HOME": "/"}


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ([], ["serve"]),
        (GIST, ["serve", *GIST]),
        (["mistralai/Mistral-7B-Instruct-v0.2"], ["serve", "mistralai/Mistral-7B-Instruct-v0.2"]),
        (["serve", "--port", "1"], ["serve", "--port", "1"]),
        (["verify", "http://a"], ["verify", "http://a"]),
        (["--help"], ["--help"]),
    ],
)
def test_arguments_without_a_command_are_those_of_serve(given: list[str], run: list[str]) -> None:
    assert container.command_line(given) == run


@pytest.mark.parametrize(
    ("given", "environment", "url"),
    [
        ([], {}, "http://127.0.0.1:8000/health"),
        (GIST, {}, "http://127.0.0.1:8000/health"),
        (["--port", "9000"], {}, "http://127.0.0.1:9000/health"),
        (["serve", "--port=9001"], {}, "http://127.0.0.1:9001/health"),
        ([], {"MAESTRALE_PORT": "9002"}, "http://127.0.0.1:9002/health"),
        (["--host", "::"], {}, "http://[::1]:8000/health"),
        (["--host", "10.1.2.3"], {}, "http://10.1.2.3:8000/health"),
        (["verify", "http://a"], {}, "http://127.0.0.1:8000/health"),
    ],
)
def test_health_is_asked_where_the_server_listens(
    given: list[str], environment: dict[str, str], url: str
) -> None:
    assert container.address(given, IN_IMAGE | environment) == url


def test_health_over_tls(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.touch()
    flags = ["--ssl-certfile", str(pem), "--ssl-keyfile", str(pem)]
    assert container.address(flags, IN_IMAGE) == "https://127.0.0.1:8000/health"


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()
        self.wfile.write(b'{"status":"x"}')

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_health_is_what_the_server_says(url: str) -> None:
    assert container.ask(f"{url}/health") == (0, '{"status":"x"}')
    assert container.ask(f"{url}/other")[0] == 1
    code, detail = container.ask("http://127.0.0.1:9/health")
    assert code == 1
    assert "refused" in detail


def test_a_volume_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    assert container.volume_problem(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
    problem = container.volume_problem(Path("/proc/1"))
    assert "can't be written by user" in problem
    assert "chown" in problem
    assert "-v maestrale:" in container.volume_problem(tmp_path / "missing")


def prepared(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"weights")
    model = PreparedModel(
        name="m",
        context_length=1,
        vocab_size=1,
        eos_token_ids=(0,),
        tokenizer_kind="hf",
        tokenizer_file="t",
        weights_digest="d",
    )
    save_prepared(model, folder)
    return folder


def test_a_shipped_model_is_linked_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(folder: Path) -> None:
        raise AssertionError("built, though it is shipped")

    monkeypatch.setattr(store, "SHIPPED", tmp_path / "shipped")
    name = f"{'a' * 32}-{FORMAT_VERSION}"
    shipped = prepared(tmp_path / "shipped" / name)
    for path in (shipped, shipped.parent):
        path.chmod(0o555)
    cache = tmp_path / "cache"
    folder = store.build_once(cache, "a" * 64, build, lambda phase, fraction: None)
    assert (folder / "weights.bin").resolve() == shipped / "weights.bin"
    (folder / "tuning.json").write_text("{}")
    assert not (shipped / "tuning.json").exists()
    # A newer image has it elsewhere: the links lead nowhere, and are made anew.
    moved = tmp_path / "moved"
    for path in (shipped, shipped.parent):
        path.chmod(0o755)
    shipped.parent.rename(moved)
    monkeypatch.setattr(store, "SHIPPED", moved)
    assert not is_intact(folder)
    again = store.build_once(cache, "a" * 64, build, lambda phase, fraction: None)
    assert again == folder
    assert is_intact(again)
    assert (moved / name / "weights.bin").read_bytes() == b"weights"

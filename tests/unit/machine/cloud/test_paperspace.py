"""Paperspace's API, played by a server on loopback in the shape of its documentation."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from maestrale.errors import CloudRefused, CloudUnreachable, NoCredentials
from maestrale.machine.cloud.paperspace import Paperspace, read_key


def template(name: str, made: str, *types: str, usable: bool = True) -> dict[str, Any]:
    kinds = [{"machineTypeLabel": one, "isAvailable": usable} for one in types]
    return {
        "id": f"t-{name}-{made}".replace(" ", "-"),
        "name": name,
        "operatingSystemLabel": name,
        "dtCreated": f"{made}-01-01T00:00:00Z",
        "agentType": "LinuxHeadless",
        "defaultSizeGb": 50,
        "availableMachineTypes": kinds,
    }


class Api(BaseHTTPRequestHandler):
    templates = [
        template("Ubuntu 22.04", "2023", "A5000", "A4000"),
        template("Ubuntu 22.04", "2025", "A5000"),
        template("Ubuntu 22.04", "2026", "A5000", usable=False),
        template("ML-in-a-Box Ubuntu 22.04", "2026", "A5000"),
        template("Ubuntu 20.04", "2026", "P4000"),
        template("Ubuntu 24.04", "2026", "A6000"),
    ]
    ips: list[str] = []
    status = 200

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self.headers["Authorization"] != "Bearer good":
            return self.answer(401, {"code": "UNAUTHORIZED", "message": "Invalid API key"})
        if self.status != 200:
            return self.answer(self.status, {"code": "X", "message": "Try later"})
        rows = (
            self.templates
            if url.path == "/os-templates"
            else [{"ip": ip, "region": "ny2", "dtCreated": "2026-01-01"} for ip in self.ips]
        )
        # Two a page, as if there were many.
        first = int(parse_qs(url.query).get("after", ["0"])[0])
        more = first + 2 < len(rows)
        body = {"items": rows[first : first + 2], "hasMore": more}
        return self.answer(200, {**body, "nextPage": str(first + 2) if more else None})

    def do_DELETE(self) -> None:
        ip = self.path.rpartition("/")[2]
        type(self).ips.remove(ip)
        self.answer(200, {"ip": ip})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Api.ips, Api.status = ["198.51.100.1", "198.51.100.2", "198.51.100.7"], 200
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def api(url: str) -> Iterator[Paperspace]:
    client = Paperspace("good", url)
    yield client
    client.close()


def test_the_newest_plain_ubuntu_for_the_machine_type(api: Paperspace) -> None:
    assert api.template("A5000") == "t-Ubuntu-22.04-2025"
    assert api.template("A6000") == "t-Ubuntu-24.04-2026"


def test_no_template_that_set_up_knows(api: Paperspace) -> None:
    with pytest.raises(CloudRefused, match="--image"):
        api.template("P4000")


def test_a_static_address_is_given_back_once(api: Paperspace) -> None:
    assert api.is_static("198.51.100.7")
    assert api.release("198.51.100.7")
    assert Api.ips == ["198.51.100.1", "198.51.100.2"]
    assert not api.release("198.51.100.7")


def test_a_refused_key(url: str) -> None:
    client = Paperspace("bad", url)
    with pytest.raises(NoCredentials, match=r"config\.json"):
        client.is_static("198.51.100.7")
    client.close()


def test_failures_have_paperspaces_words(api: Paperspace) -> None:
    Api.status = 503
    with pytest.raises(CloudRefused, match=r"503.*Try later"):
        api.is_static("198.51.100.7")


def test_no_answer() -> None:
    client = Paperspace("good", "http://127.0.0.1:9")
    with pytest.raises(CloudUnreachable, match="Paperspace"):
        client.template("A5000")
    client.close()


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"apiKey": ""}', "{broken"])
def test_no_key(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / ".paperspace").mkdir()
        (tmp_path / ".paperspace" / "config.json").write_text(text)
    with pytest.raises(NoCredentials, match="apiKey"):
        read_key(tmp_path)


def test_the_key_is_where_skypilot_has_it(tmp_path: Path) -> None:
    (tmp_path / ".paperspace").mkdir()
    (tmp_path / ".paperspace" / "config.json").write_text('{"apiKey": "k1"}')
    assert read_key(tmp_path) == "k1"

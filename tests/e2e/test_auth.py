"""Who may talk to a real server: made keys, given keys, none; Host and Origin; TLS.

On the scripted engine: these are questions to the API process, whatever the model.
"""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trustme
from openai import OpenAI

from e2e_clients import TIMEOUT, strict_openai
from serving import Server, clean_environment, serving

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("prepared_model")]

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
# The files of the pages, but never their data: /status.json asks.
OPEN = {"/health", "/ping", "/", "/status", "/usage"}
SCRIPTED = ("--engine", "scripted")


@pytest.fixture(scope="module")
def public(cache_dir: Path, prepared_model: Path) -> Iterator[Server]:
    with serving(*SCRIPTED, cache_dir=cache_dir, host="0.0.0.0") as running:
        yield running


@pytest.fixture(scope="module")
def private(cache_dir: Path, prepared_model: Path) -> Iterator[Server]:
    flags = ("--allowed-hosts", "proxy.example", "--allowed-origins", "https://chat.example")
    with serving(*SCRIPTED, *flags, cache_dir=cache_dir) as running:
        yield running


def made_key(server: Server) -> str:
    (key,) = re.findall(r"API key \(shown this once\): (\S+)", server.log())
    return str(key)


def test_a_public_address_makes_a_key_for_every_route(public: Server) -> None:
    key = made_key(public)
    assert len(key) > 40
    # Once by itself, once in the curl line; never again.
    assert public.log().count(key) == 2
    bearer = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=public.url, timeout=TIMEOUT) as client:
        described = client.get("/openapi.json", headers=bearer).json()["paths"]
        routes = [
            (method.upper(), path.replace("{model_id}", "x"))
            for path, methods in described.items()
            for method in methods
        ]
        assert ("POST", CHAT) in routes
        for method, path in [*routes, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/no")]:
            answer = client.request(method, path, json={} if method == "POST" else None)
            if path in OPEN:
                assert answer.status_code == 200, path
                continue
            assert answer.status_code == 401, f"{method} {path} is open"
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert key not in answer.text
            inside = client.request(
                method, path, headers=bearer, json={} if method == "POST" else None
            )
            assert inside.status_code != 401, f"{method} {path} refuses the key"
    with strict_openai(public, key) as right, strict_openai(public, key[:-1]) as wrong:
        assert right.chat.completions.create(model=right.models.list().data[0].id, messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
    assert public.log().count(key) == 2


def test_the_curl_line_works_as_shown(public: Server) -> None:
    command = re.findall(r"  (curl .*?}')$", public.log(), re.DOTALL | re.MULTILINE)[0]
    assert f"Authorization: Bearer {made_key(public)}" in command
    result = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, check=True, timeout=TIMEOUT
    )
    assert json.loads(result.stdout)["choices"][0]["message"]["content"]


def test_no_auth_must_be_said(cache_dir: Path) -> None:
    with serving(*SCRIPTED, "--no-auth", cache_dir=cache_dir, host="0.0.0.0") as server:
        assert "API key" not in server.log()
        assert "--no-auth" in server.log()
        with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
            assert client.get("/v1/models").status_code == 200
            # Any name may lead to a public address, but no foreign page may use it.
            named = client.get("/v1/models", headers={"Host": "llm.example:8000"})
            assert named.status_code == 200
            foreign = client.get("/v1/models", headers={"Origin": "https://evil.example"})
            assert foreign.status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "proxy.example"}, 200),
        ({"Host": "evil.example"}, 403),  # a name rebound to 127.0.0.1
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "https://chat.example"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
    ],
)
def test_host_and_origin_on_loopback(private: Server, headers: dict[str, str], status: int) -> None:
    assert "API key" not in private.log()
    body = {"messages": HELLO, "max_tokens": 1}
    with httpx.Client(base_url=private.url, timeout=TIMEOUT, headers=headers) as client:
        for answer in (client.get("/v1/models"), client.post(CHAT, json=body)):
            assert answer.status_code == status
            if status == 403:
                assert answer.json()["error"]["type"]
                assert "access-control-allow-origin" not in answer.headers
        assert client.get("/health").status_code == 200


def test_a_form_of_a_foreign_page_is_no_request(private: Server) -> None:
    """What a browser sends across origins without asking first."""
    simple = {"Content-Type": "text/plain"}
    body = json.dumps({"messages": HELLO, "max_tokens": 1})
    answer = httpx.post(private.url + CHAT, content=body, headers=simple, timeout=TIMEOUT)
    assert answer.status_code == 415


def test_tls(cache_dir: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    chain, private_key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.private_key_pem.write_to_path(private_key)
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(chain, append=True)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    flags = ("--ssl-certfile", str(chain), "--ssl-keyfile", str(private_key))
    with serving(*SCRIPTED, *flags, cache_dir=cache_dir, tls=trusting) as server:
        assert server.url.startswith("https://")
        assert f"curl {server.url}/v1" in server.log()
        with (
            openai.DefaultHttpxClient(verify=trusting) as transport,
            OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=transport) as client,
        ):
            (model,) = client.models.list().data
            stream = client.chat.completions.create(model=model.id, messages=HELLO, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        with pytest.raises(httpx.ConnectError):  # a certificate that nobody vouches for
            httpx.get(f"{server.url}/health", timeout=TIMEOUT)
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/health", timeout=TIMEOUT)
        same_origin = httpx.get(
            f"{server.url}/v1/models", headers={"Origin": server.url}, verify=trusting
        )
        assert same_origin.status_code == 200


def test_a_certificate_without_its_key_is_a_clear_message(cache_dir: Path, tmp_path: Path) -> None:
    one, other = trustme.CA().issue_cert("localhost"), trustme.CA().issue_cert("localhost")
    one.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    other.private_key_pem.write_to_path(tmp_path / "key.pem")
    for flags in (
        ["--ssl-certfile", str(tmp_path / "chain.pem")],
        ["--ssl-certfile", str(tmp_path / "chain.pem"), "--ssl-keyfile", str(tmp_path / "key.pem")],
    ):
        result = subprocess.run(
            [sys.executable, "-m", "maestrale", "serve", "--port", "0", "--cache-dir",
             str(cache_dir), *SCRIPTED, *flags],
            env=clean_environment(), capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert result.returncode != 0
        assert "--ssl-keyfile" in result.stderr
        assert "Traceback" not in result.stderr

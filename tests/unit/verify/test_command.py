"""`maestrale verify` as a person meets it: exit codes, messages, reports, bad servers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

import hostile_servers as hostile
from fake_chat_server import FAULTS, fake_chat_server
from maestrale.cli.verify import command

V21 = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
KEY = "sk-very-secret-key"


def verify(*arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.return_value, done.stdout, done.stderr


def collection(tmp_path: Path, *tests: str, path: str = "/health", **more: Any) -> str:
    """A collection of one request for each script."""
    items = [
        {
            "name": f"request {number}",
            "event": [{"listen": "test", "script": {"exec": source.split("\n")}}],
            "request": {"method": "GET", "url": "{{baseUrl}}" + path},
            **more,
        }
        for number, source in enumerate(tests)
    ]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"info": {"name": "mine", "schema": V21}, "item": items}))
    return str(file)


def test_a_good_server_passes() -> None:
    with fake_chat_server() as fake:
        code, out, _ = verify(fake.url)
    assert code == 0, out
    last = out.strip().splitlines()[-1]
    assert last.startswith("PASS: 50 requests, ")
    assert "21 skipped" in last  # two of them for want of a key
    assert "Responses" in out
    follow_up = next(one for one in fake.seen if "build their houses" in str(one["messages"][-1]))
    roles = [one["role"] for one in follow_up["messages"]]
    assert roles == ["user", "assistant"] * 3 + ["user"]
    assert follow_up["messages"][1]["content"].startswith('The mistral is a "cold" wind.\nIt blows')


def test_a_server_that_makes_embeddings_alone() -> None:
    with fake_chat_server(embeds=True) as fake:
        code, out, _ = verify(fake.url)
    assert code == 0, out
    assert out.strip().splitlines()[-1].startswith("PASS: 50 requests, ")
    assert "this server makes embeddings only" in " ".join(out.split())
    assert "Embeddings / Several at once: status 200" in out
    assert "Simple questions / The capital of France: status -" in out
    with fake_chat_server("unordered", embeds=True) as fake:
        code, out, _ = verify(fake.url)
    assert code == 1
    assert "✗ Embeddings / Several at once" in out


def test_a_server_that_reranks_alone() -> None:
    with fake_chat_server(ranks=True) as fake:
        code, out, _ = verify(fake.url)
    assert code == 0, out
    assert out.strip().splitlines()[-1].startswith("PASS: 50 requests, ")
    assert "this server ranks documents only" in " ".join(out.split())
    assert "Rerank / The best two, with their texts: status 200" in out
    assert "Simple questions / The capital of France: status -" in out
    with fake_chat_server("unsorted", ranks=True) as fake:
        code, out, _ = verify(fake.url)
    assert code == 1
    assert "✗ Rerank / Documents, the best first" in out


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_server_is_found(fault: str) -> None:
    with fake_chat_server(fault) as fake:
        code, out, _ = verify(fake.url)
    assert code == 1, out
    assert out.strip().splitlines()[-1].startswith("FAIL: ")


def test_a_failing_check_says_what_was_expected_what_came_and_why() -> None:
    with fake_chat_server("usage") as fake:
        code, out, _ = verify(fake.url, "--folder", "The capital of France")
    assert code == 1
    assert "✗ Simple questions / The capital of France" in out
    assert "expected: 14" in out
    assert "what came: 15" in out
    assert "usual cause: The server counts tokens wrongly" in out


def test_a_key_is_sent_and_never_shown(tmp_path: Path) -> None:
    html, junit = tmp_path / "r.html", tmp_path / "r.xml"
    with fake_chat_server(key=KEY) as fake:
        wanted = ["--folder", "What must fail", "--folder", "Is it up"]
        files = ["--report", str(html), "--junit", str(junit), "--json"]
        code, out, err = verify(fake.url + "/v1/", "--api-key", KEY, *wanted, *files)
    assert code == 0, err
    assert f"Bearer {KEY}" in fake.authorizations
    assert "skipped" not in err
    for text in (out, err, html.read_text(), junit.read_text()):
        assert KEY not in text


def test_a_key_echoed_by_the_server_is_hidden(tmp_path: Path) -> None:
    script = f"pm.test('t', () => pm.expect('{KEY}').to.equal('')); console.log('{KEY}');"
    with fake_chat_server() as fake:
        code, out, err = verify(
            fake.url, "--collection", collection(tmp_path, script), "--api-key", KEY, "--json"
        )
    assert code == 1
    assert KEY not in out + err


def test_the_reports_can_be_read(tmp_path: Path) -> None:
    html, junit = tmp_path / "r.html", tmp_path / "r.xml"
    with fake_chat_server("off topic") as fake:
        code, out, _ = verify(
            fake.url,
            "--report",
            str(html),
            "--junit",
            str(junit),
            "--json",
            "--folder",
            "Streaming",
        )
    data = json.loads(out)
    assert (code, data["verdict"], data["failed"]) == (1, "fail", 2)
    assert data["requests"][0]["first_token"] > 0
    failure = next(one for one in data["requests"][0]["assertions"] if not one["passed"])
    assert failure["cause"].startswith("The answer is off the subject")
    suites = ElementTree.parse(junit).getroot()
    assert len(suites.findall("testsuite")) == 2
    assert len(suites.findall(".//failure")) == 2
    page = html.read_text()
    assert "It is a good idea to have a look" in page
    assert "FAIL: 2 failed" in page
    for outside in ("<script", "src=", "<link", "url(", "@import"):
        assert outside not in page, "the report must stand alone"


def test_what_a_server_sends_is_no_markup_in_the_report(tmp_path: Path) -> None:
    html = tmp_path / "r.html"
    script = "pm.test('<b>t</b>', () => pm.expect('<script>x</script>').to.equal(1));"
    with fake_chat_server() as fake:
        verify(fake.url, "--collection", collection(tmp_path, script), "--report", str(html))
    page = html.read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_server_that_asks_for_a_key() -> None:
    with fake_chat_server(key=KEY) as fake:
        assert verify(fake.url)[0] == 2
        code, out, _ = verify(fake.url, "--api-key", "wrong")
    assert code == 2
    assert "refuses the key that was given" in out


def test_no_server_is_could_not_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, out, _ = verify(f"http://127.0.0.1:{port}")
    assert code == 2
    assert "COULD NOT RUN: no connection" in out
    assert "Is the server running" in out


@pytest.mark.parametrize("model", [(), ("--model", "m")])
@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (hostile.hang, "no answer came within 0.5 seconds"),
        (hostile.closes_at_once, "no HTTP answer came"),
        (hostile.no_http, "no HTTP answer came"),
    ],
)
def test_a_server_that_says_nothing_is_could_not_run(
    behave: Callable[[socket.socket, threading.Event], None], message: str, model: tuple[str, ...]
) -> None:
    with hostile.misbehaving(behave) as url:
        code, out, _ = verify(url, "--timeout", "0.5", *model)
    assert code == 2, out
    assert message in out


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (hostile.hang_after_the_head, "the answer did not end within 0.5 seconds"),
        (hostile.drip, "the answer did not end within 0.5 seconds"),
        (hostile.html, "answers with a web page (HTML)"),
        (hostile.closes_midway, "the answer was cut off"),
        (hostile.broken_json, "answers with broken JSON"),
        (hostile.redirects, "redirects without end"),
        (hostile.gzip_lie, "can't be decompressed"),
    ],
)
def test_what_is_no_api_is_could_not_run(
    behave: Callable[[socket.socket, threading.Event], None], message: str
) -> None:
    # Where no silence is tested, a busy machine must not be taken for one.
    limit = ("--timeout", "0.5" if "0.5 seconds" in message else "20")
    with hostile.misbehaving(behave) as url:
        code, out, _ = verify(url, *limit)
        with_model, _, _ = verify(url, *limit, "--model", "m")
    assert code == 2, out
    assert message in out
    assert with_model in (1, 2), "never a pass"


def test_an_endless_body_is_bounded() -> None:
    with hostile.misbehaving(hostile.endless) as url:
        code, out, _ = verify(url, "--timeout", "30")
    assert code == 2
    assert "has no end" in out or "did not end" in out


def test_a_stream_that_is_cut_off_fails() -> None:
    with hostile.misbehaving(hostile.stream_cut_off) as url:
        code, out, _ = verify(url, "--folder", "Is it up", "--folder", "Streaming")
    assert code == 1
    assert "what came: the answer was cut off" in out


def test_unsupported_calls_are_could_not_run_and_named(tmp_path: Path) -> None:
    passing = "pm.test('fine', () => {});"
    file = collection(tmp_path, passing, "try { pm.sendRequest('x'); } catch (error) {}")
    with fake_chat_server() as fake:
        code, out, _ = verify(fake.url, "--collection", file)
    assert code == 2
    assert "'request 1' uses pm.sendRequest" in out


def test_a_script_that_breaks_off_fails(tmp_path: Path) -> None:
    with fake_chat_server() as fake:
        code, out, _ = verify(fake.url, "--collection", collection(tmp_path, "nowhere();"))
    assert code == 1
    assert "a script broke off: ReferenceError" in out


def test_an_own_collection_with_its_environment(tmp_path: Path) -> None:
    script = "pm.test('seen', () => pm.expect(pm.environment.get('colour')).to.equal('blue'));"
    with fake_chat_server() as fake:
        values = [{"key": "baseUrl", "value": fake.url}, {"key": "colour", "value": "blue"}]
        environment = tmp_path / "e.json"
        environment.write_text(json.dumps({"name": "e", "values": values}))
        file = collection(tmp_path, script)
        code, out, _ = verify("--collection", file, "--environment", str(environment))
    assert code == 0, out


def test_the_next_request_can_be_named_but_not_without_end(tmp_path: Path) -> None:
    jump = "pm.execution.setNextRequest('request 2');"
    last = "pm.test('last', () => {});"
    with fake_chat_server() as fake:
        file = collection(tmp_path, jump, "nowhere();", last)
        assert verify(fake.url, "--collection", file)[0] == 0
        file = collection(tmp_path, "pm.execution.setNextRequest('request 0');")
        code, out, _ = verify(fake.url, "--collection", file)
    assert code == 2
    assert "go round without end" in out


def test_skipping_a_request_is_visible(tmp_path: Path) -> None:
    before = [{"listen": "prerequest", "script": {"exec": ["pm.execution.skipRequest();"]}}]
    with fake_chat_server() as fake:
        code, out, _ = verify(fake.url, "--collection", collection(tmp_path, "", event=before))
    assert code == 0
    assert "1 skipped" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--collection", "/nonexistent.json"), "No such file"),
        (("--folder", "No such folder"), "no folder or request 'No such folder'"),
        (("--report", "/nonexistent/r.html"), "does not exist"),
    ],
)
def test_wrong_calls_are_could_not_run(arguments: tuple[str, ...], message: str) -> None:
    with fake_chat_server() as fake:
        code, out, _ = verify(fake.url, *arguments)
    assert code == 2
    assert message in out


@pytest.mark.parametrize("url", ["http://", "ftp://host/x", "http://host:99999", "http://a b"])
def test_a_url_that_is_none(url: str) -> None:
    code, out, _ = verify(url, "--connect-timeout", "2")
    assert code == 2, out

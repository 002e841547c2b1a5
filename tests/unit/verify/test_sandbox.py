"""The pm object: what it does, what it refuses, and what bounds a script."""

from __future__ import annotations

from typing import Any

import pytest

from maestrale.errors import CannotVerify
from maestrale.verify.sandbox import Scopes, ScriptRun, run_scripts


def run(
    source: str,
    *,
    scopes: Scopes | None = None,
    body: str = '{"a": {"b": [1, 2]}, "n": 3}',
    event: str = "test",
    seconds: float = 10.0,
) -> ScriptRun:
    response: dict[str, Any] = {
        "code": 200,
        "status": "OK",
        "headers": [{"key": "Content-Type", "value": "application/json"}],
        "body": body,
        "responseTime": 12,
        "responseSize": len(body),
    }
    return run_scripts(
        [source],
        event=event,
        request={
            "method": "POST",
            "url": "http://host:80/v1/x?y=1",
            "headers": [{"key": "X-One", "value": "1"}],
            "body": '{"q": 1}',
            "bodyMode": "raw",
        },
        response=response if event == "test" else None,
        scopes=scopes or Scopes(),
        location=("folder", "request"),
        request_id="7",
        seconds=seconds,
    )


@pytest.mark.parametrize(
    "check",
    [
        "pm.response.to.have.status(200)",
        'pm.response.to.have.status("OK")',
        "pm.response.to.be.ok",
        "pm.response.to.be.success",
        "pm.response.to.be.json",
        'pm.response.to.have.header("content-type", "application/json")',
        'pm.response.to.have.jsonBody("a.b", [1, 2])',
        "pm.response.to.have.jsonSchema({required: ['n'], properties: {n: {type: 'integer'}}})",
        "pm.expect(pm.response.json().n).to.be.oneOf([2, 3])",
        "pm.expect(pm.response.responseTime).to.be.below(100)",
        'pm.expect(pm.response.headers.get("CONTENT-TYPE")).to.include("json")',
        'pm.expect(pm.request.url.getPath()).to.equal("/v1/x")',
        "pm.expect(JSON.parse(pm.request.body.raw)).to.eql({q: 1})",
        'pm.expect(pm.info.requestName).to.equal("request")',
        'pm.expect(pm.execution.location).to.have.members(["folder", "request"])',
    ],
)
def test_a_check_passes_and_its_contrary_fails(check: str) -> None:
    contrary = check.replace(".to.", ".to.not.", 1)
    found = run(f"pm.test('yes', () => {check}); pm.test('no', () => {contrary});")
    assert [one.passed for one in found.assertions] == [True, False]
    assert found.error is None


def test_a_failure_tells_what_was_expected_and_what_came() -> None:
    (found,) = run("pm.test('t', () => pm.expect(1, 'number').to.equal(2));").assertions
    assert found.failure is not None
    assert found.failure.message == "number: expected 1 to equal 2"
    assert (found.failure.expected, found.failure.actual) == ("2", "1")


def test_scopes_outrank_each_other_and_keep_what_scripts_set() -> None:
    scopes = Scopes(environment={"x": "environment"}, collection={"x": "collection", "y": "c"})
    found = run(
        """
        pm.test("layers", () => pm.expect(pm.variables.get("x")).to.equal("environment"));
        pm.test("below", () => pm.expect(pm.variables.get("y")).to.equal("c"));
        pm.test("in text", () => pm.expect(pm.variables.replaceIn("{{x}}-{{none}}"))
            .to.equal("environment-{{none}}"));
        pm.variables.set("x", "local");
        pm.test("local", () => pm.expect(pm.variables.get("x")).to.equal("local"));
        pm.environment.set("e", {"deep": 1});
        pm.collectionVariables.unset("y");
        pm.globals.set("g", 1);
        """,
        scopes=scopes,
    )
    assert [one.passed for one in found.assertions] == [True] * 4
    assert scopes.environment["e"] == {"deep": 1}
    assert scopes.collection == {"x": "collection"}
    assert scopes.globals == {"g": 1}


def test_skipped_tests_callbacks_and_console() -> None:
    found = run(
        """
        pm.test.skip("not here");
        pm.test("called back", (done) => { Promise.resolve().then(() => done(new Error("no"))); });
        console.log("seen", 1);
        """
    )
    assert [(one.skipped, one.passed) for one in found.assertions] == [(True, True), (False, False)]
    assert found.console == ("seen 1",)


def test_before_the_request_a_script_may_skip_it_or_name_the_next() -> None:
    found = run("pm.execution.skipRequest(); nowhere();", event="prerequest")
    assert found.skip_request
    assert found.error is None
    found = run("pm.execution.setNextRequest('other')", event="prerequest")
    assert found.next_request == ("other",)
    found = run("pm.request.headers.upsert({key: 'X-One', value: '2'})", event="prerequest")
    assert found.request["headers"] == [{"key": "X-One", "value": "2"}]


def test_an_error_outside_of_a_test_is_kept() -> None:
    found = run("pm.test('fine', () => {}); nowhere();")
    assert found.error is not None
    assert "nowhere" in found.error.message


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("pm.sendRequest('http://x', () => {})", "pm.sendRequest"),
        ("pm.cookies.get('x')", "pm.cookies"),
        ("pm.vault.get('x')", "pm.vault"),
        ("pm.visualizer.set('x')", "pm.visualizer"),
        ("pm.response.cookies", "pm.response.cookies"),
        ("pm.response.dataURI()", "pm.response.dataURI"),
        ("const _ = require('lodash')", "require"),
        ("pm.require('x')", "pm.require"),
        ("setTimeout(() => {}, 1)", "setTimeout"),
        ("postman.setNextRequest('x')", "postman"),
        ("tests['x'] = true", "tests"),
        ("pm.variables.replaceIn('{{$randomCity}}')", "randomCity"),
        ("pm.test('t', async () => {})", "async function"),
        ("pm.request.method = 'GET'", "setting pm.request.method"),
        ("pm.request.headers.add({key: 'a', value: 'b'})", "after the request was sent"),
        ("try { pm.sendRequest('x'); } catch (error) { }", "pm.sendRequest"),
        ("pm.test('t', () => pm.iterationData.get('x'))", "pm.iterationData"),
    ],
)
def test_what_the_runner_lacks_is_never_a_pass(source: str, call: str) -> None:
    with pytest.raises(CannotVerify) as caught:
        run(source)
    assert call in str(caught.value)
    assert "folder / request" in str(caught.value)


def test_a_callback_that_never_comes_is_never_a_pass() -> None:
    with pytest.raises(CannotVerify, match="waits for a callback"):
        run("pm.test('t', (done) => {});")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("while (true) { }", "ran longer than 0.3 seconds"),
        ("try { while (true) { } } finally { while (true) { } }", "ran longer"),
        ("pm.test('t', () => { while (true) { } })", "ran longer"),
        ("/^(a+)+$/.test('a'.repeat(40) + 'b')", "ran longer"),
        ("Promise.resolve().then(() => { while (true) { } })", "ran longer"),
        ("const next = () => Promise.resolve().then(next); next()", "never end"),
        ("pm.globals.set('x', 'y'.repeat(600e6))", "memory"),
    ],
)
def test_a_script_is_bounded(source: str, message: str) -> None:
    try:
        found = run(source, seconds=0.3)
    except CannotVerify as error:
        assert message in str(error)  # noqa: PT017 - a script that ends in an error is fine too
    else:
        assert found.error is not None


def test_scripts_reach_nothing_outside() -> None:
    for name in ("process", "std", "os", "__libraries", "module", "global", "WebAssembly"):
        (found,) = run(
            f"pm.test('t', () => pm.expect(typeof {name}).to.equal('undefined'))"
        ).assertions
        assert found.passed, name

"""Runs a collection against a server: pre-request scripts, request, tests, one after another.

READ FIRST in this folder. A request that gets no whole answer is a failed check; only where
nothing at all can be said (no server, a page that is no API, an unsupported script) the run ends
with CannotVerify, which is exit code 2 and never a pass.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from maestrale.errors import CannotVerify
from maestrale.verify import variables
from maestrale.verify.collection import Auth, Collection, CollectionRequest, Environment
from maestrale.verify.exchange import HttpAnswer, NoAnswer, exchange
from maestrale.verify.results import RequestResult, RunResult
from maestrale.verify.sandbox import Assertion, Failure, Scopes, ScriptRun, run_scripts

HIDDEN = "•••"
_MOST_LOST_IN_A_ROW = 2
_MOST_TOKENS = 10**9  # in one answer
_MOST_KEPT = 1 << 20  # characters of an answer, for the reports
_MOST_ROUNDS = 10  # a setNextRequest loop ends after this many times the collection's length


@dataclass(frozen=True)
class RunOptions:
    """`seconds` bounds each exchange, `connect_seconds` its connecting."""

    seconds: float = 300.0
    connect_seconds: float = 10.0
    folders: tuple[str, ...] = ()


def choose(collection: Collection, folders: Sequence[str]) -> tuple[CollectionRequest, ...]:
    """The requests in the named folders (or of the given names), in the collection's order."""
    if not folders:
        return collection.requests
    known = {name for request in collection.requests for name in request.location}
    for name in folders:
        if name not in known:
            raise CannotVerify(
                f"The collection has no folder or request '{name}'. It has: "
                + ", ".join(dict.fromkeys(one.location[0] for one in collection.requests))
                + "."
            )
    return tuple(one for one in collection.requests if set(folders) & set(one.location))


async def run(
    collection: Collection,
    environment: Environment,
    options: RunOptions,
    result: RunResult,
    on_start: Callable[[CollectionRequest], None],
    on_result: Callable[[RequestResult], None],
) -> None:
    """Run the collection and fill `result`, telling the callbacks as it goes.

    Raises CannotVerify when there can be no verdict; `result` then holds what was found before.
    """
    requests = choose(collection, options.folders)
    scopes = Scopes(environment=dict(environment.values), collection=dict(collection.variables))
    secrets = _Secrets(environment)
    start = time.perf_counter()
    index = steps = lost = 0
    heard = False
    try:
        while index < len(requests):
            steps += 1
            if steps > _MOST_ROUNDS * len(requests):
                raise CannotVerify("The collection's setNextRequest calls go round without end.")
            request = requests[index]
            on_start(request)
            one, following, answered = await _run_request(
                request, scopes, environment.name, options, secrets
            )
            result.requests.append(one)
            on_result(one)
            heard = heard or answered
            lost = lost + 1 if one.status is None and not one.skipped else 0
            if lost and not heard:
                raise CannotVerify(
                    f"{one.problem} (asked: {one.method} {one.url}). Is the server running, and "
                    "is the URL right?"
                )
            if lost >= _MOST_LOST_IN_A_ROW:
                break
            if following is None:
                index += 1
            else:
                index = _index_of(following[0], requests)
    finally:
        result.seconds = time.perf_counter() - start
        result.model = str(scopes.environment.get("model", result.model))


def _index_of(name: str | None, requests: Sequence[CollectionRequest]) -> int:
    if name is None:
        return len(requests)
    for index, request in enumerate(requests):
        if name in (request.name, request.id):
            return index
    raise CannotVerify(f"setNextRequest names '{name}', which the collection doesn't have.")


class _Secrets:
    """Takes the key, and the environment's secret values, out of whatever is shown."""

    def __init__(self, environment: Environment) -> None:
        values = [*environment.secrets, str(environment.values.get("apiKey") or "")]
        self._values = sorted({one for one in values if len(one) > 3}, key=len, reverse=True)

    def hide(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, HIDDEN)
            text = text.replace(json.dumps(value)[1:-1], HIDDEN)
            text = text.replace(quote(value), HIDDEN)
        return text


async def _run_request(
    request: CollectionRequest,
    scopes: Scopes,
    environment_name: str,
    options: RunOptions,
    secrets: _Secrets,
) -> tuple[RequestResult, tuple[str | None] | None, bool]:
    """(what was found, the request that a script named as the next one, whether bytes came)."""
    state: dict[str, Any] = {
        "method": request.method,
        "url": request.url,
        "headers": [{"key": key, "value": value} for key, value in request.headers],
        "body": request.body,
        "bodyMode": request.body_mode,
    }

    def scripts(event: str, response: dict[str, Any] | None) -> ScriptRun:
        return run_scripts(
            request.before if event == "prerequest" else request.tests,
            event=event,
            request=state,
            response=response,
            scopes=scopes,
            location=request.location,
            request_id=request.id,
            environment_name=environment_name,
        )

    before = scripts("prerequest", None) if request.before else None
    if before is not None:
        state["headers"] = before.request["headers"]
    _fill_in(state, request, scopes)
    shown: dict[str, Any] = {
        "folder": request.folder,
        "name": request.name,
        "method": state["method"],
        "url": secrets.hide(str(state["url"])),
        "sent_body": None if state["body"] is None else secrets.hide(str(state["body"])),
    }
    ran = [before] if before else []
    if before is not None and (before.skip_request or before.error):
        return (
            RequestResult(
                **shown,
                **_findings(ran, secrets),
                skipped=before.skip_request,
            ),
            before.next_request,
            False,
        )
    try:
        answer = await exchange(
            str(state["method"]),
            str(state["url"]),
            [(one["key"], one["value"]) for one in state["headers"]],
            None if state["body"] is None else str(state["body"]).encode(),
            seconds=options.seconds,
            connect_seconds=options.connect_seconds,
        )
    except NoAnswer as error:
        found = _findings(ran, secrets)
        found["problem"] = secrets.hide(str(error))
        return RequestResult(**shown, **found), None, error.began
    response = {
        "code": answer.status,
        "status": answer.reason,
        "headers": [{"key": key, "value": value} for key, value in answer.headers],
        "body": answer.text(),
        "responseTime": round(answer.seconds * 1000),
        "responseSize": len(answer.body),
    }
    after = scripts("test", response) if request.tests else None
    ran += [after] if after else []
    following = next((one.next_request for one in reversed(ran) if one.next_request), None)
    return (
        RequestResult(
            **shown,
            **_findings(ran, secrets),
            **_measure(answer),
            status=answer.status,
            reason=answer.reason,
            content_type=answer.header("content-type"),
            body=secrets.hide(answer.text())[:_MOST_KEPT],
        ),
        following,
        True,
    )


def _fill_in(state: dict[str, Any], request: CollectionRequest, scopes: Scopes) -> None:
    """Replace the variables and add the headers that Postman adds."""
    layers = scopes.layers()
    url = variables.replace(state["url"], layers)
    state["url"] = url if "://" in url else f"http://{url}"
    state["headers"] = [
        {key: variables.replace(value, layers) for key, value in one.items()}
        for one in state["headers"]
    ]
    if state["body"] is not None:
        state["body"] = variables.replace(state["body"], layers)
        present = {one["key"].lower() for one in state["headers"]}
        if request.content_type and "content-type" not in present:
            state["headers"].append({"key": "Content-Type", "value": request.content_type})
    if request.auth is not None:
        _authorize(state, request.auth, layers)


def _authorize(state: dict[str, Any], auth: Auth, layers: Sequence[dict[str, Any]]) -> None:
    values = {key: variables.replace(value, layers) for key, value in auth.values.items()}
    match auth.kind:
        case "bearer" if values.get("token"):
            state["headers"].append({"key": "Authorization", "value": f"Bearer {values['token']}"})
        case "basic":
            pair = f"{values.get('username', '')}:{values.get('password', '')}"
            encoded = base64.b64encode(pair.encode()).decode()
            state["headers"].append({"key": "Authorization", "value": f"Basic {encoded}"})
        case "apikey" if values.get("key"):
            if values.get("in") == "query":
                mark = "&" if "?" in state["url"] else "?"
                pair = f"{quote(values['key'])}={quote(values.get('value', ''))}"
                state["url"] += f"{mark}{pair}"
            else:
                state["headers"].append({"key": values["key"], "value": values.get("value", "")})


def _findings(ran: Sequence[ScriptRun], secrets: _Secrets) -> dict[str, Any]:
    """Assertions, console lines and script errors of the events that ran, without secrets."""
    hidden = []
    problem = None
    for one in ran:
        hidden += [_hide_assertion(assertion, secrets) for assertion in one.assertions]
        if one.error is not None:
            problem = secrets.hide(f"a script broke off: {one.error.name}: {one.error.message}")
    return {
        "assertions": tuple(hidden),
        "console": tuple(secrets.hide(line) for one in ran for line in one.console),
        "problem": problem,
    }


def _hide_assertion(assertion: Assertion, secrets: _Secrets) -> Assertion:
    failure = assertion.failure
    if failure is None:
        return assertion
    return replace(
        assertion,
        failure=Failure(
            failure.name,
            secrets.hide(failure.message),
            None if failure.expected is None else secrets.hide(failure.expected),
            None if failure.actual is None else secrets.hide(failure.actual),
        ),
    )


def _measure(answer: HttpAnswer) -> dict[str, Any]:
    """Token counts from the answer's usage, and the speed that follows from them.

    A stream's speed counts the tokens after the first, over the time after the first; any other
    answer's counts all tokens over the whole time.
    """
    usage = _usage(answer)
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    speed = None
    if completion:
        if answer.first_token is None:
            speed = completion / max(answer.seconds, 1e-9)
        elif completion > 1 and answer.seconds > answer.first_token:
            speed = (completion - 1) / (answer.seconds - answer.first_token)
    return {
        "seconds": answer.seconds,
        "first_token": answer.first_token,
        "tokens_per_second": speed,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
    }


def _count(usage: dict[str, Any], name: str) -> int | None:
    """A number of tokens; None for what is none that could be."""
    value = usage.get(name)
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _usage(answer: HttpAnswer) -> dict[str, Any]:
    text = answer.text()
    if "text/event-stream" in answer.header("content-type"):
        lines = (line for line in text.splitlines() if line.startswith("data:"))
        texts = [line[5:] for line in lines if '"usage"' in line]
    else:
        texts = [text]
    for one in reversed(texts):
        try:
            usage = json.loads(one).get("usage")
        except (ValueError, AttributeError, RecursionError):
            continue
        if isinstance(usage, dict):
            return usage
    return {}


def new_result(collection: str, server: str, model: str) -> RunResult:
    """An empty result, dated now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return RunResult(collection=collection, server=server, model=model, started=now)

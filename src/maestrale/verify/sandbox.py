"""Runs the scripts of a collection in QuickJS, with Postman's `pm` object around them.

The scripts get state as JSON and leave an outcome as JSON; they can call nothing outside the
engine: no files, no network, no Python. Time and memory are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import quickjs

from maestrale.errors import CannotVerify

SCRIPT_SECONDS = 10.0
SCRIPT_BYTES = 512 * 1024 * 1024
_MOST_PENDING_JOBS = 100_000


@dataclass(frozen=True)
class Failure:
    """Why an assertion failed, or a script ended. `expected`, `actual`: as text, where known."""

    name: str
    message: str
    expected: str | None = None
    actual: str | None = None


@dataclass(frozen=True)
class Assertion:
    """One `pm.test`."""

    name: str
    passed: bool
    skipped: bool = False
    failure: Failure | None = None


@dataclass
class Scopes:
    """Postman's layers of variables. `local` outranks `environment`, and so on downwards."""

    local: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    collection: dict[str, Any] = field(default_factory=dict)
    globals: dict[str, Any] = field(default_factory=dict)

    def layers(self) -> tuple[dict[str, Any], ...]:
        return (self.local, self.environment, self.collection, self.globals)


@dataclass(frozen=True)
class ScriptRun:
    """What the scripts of one event did. `next_request` is (name,) if one was named."""

    assertions: tuple[Assertion, ...]
    console: tuple[str, ...]
    error: Failure | None
    skip_request: bool
    next_request: tuple[str | None] | None
    request: dict[str, Any]


@cache
def _asset(name: str) -> str:
    return (files("maestrale.verify") / name).read_text(encoding="utf-8")


def _load_libraries(context: quickjs.Context) -> None:
    context.eval(
        "globalThis.global = globalThis; globalThis.console = {error(){}, warn(){}, log(){}};"
    )
    context.eval("globalThis.__libraries = {};")
    for name, library in (
        ("chai", "chai"),
        ("Ajv", "ajv"),
        ("chaiPostman", "chai-postman"),
    ):
        context.eval("globalThis.module = {exports: {}}; globalThis.exports = module.exports;")
        context.eval(_asset(f"vendor/{library}.min.js"))
        context.eval(f"__libraries.{name} = module.exports;")
    context.eval("delete globalThis.module; delete globalThis.exports; delete globalThis.global;")
    context.eval(_asset("assets/pm.js"))


def run_scripts(
    scripts: Sequence[str],
    *,
    event: str,
    request: dict[str, Any],
    response: dict[str, Any] | None,
    scopes: Scopes,
    location: Sequence[str],
    request_id: str,
    environment_name: str = "",
    seconds: float = SCRIPT_SECONDS,
) -> ScriptRun:
    """Run the scripts of one event of one request in order, and update `scopes`.

    `event` is "prerequest" or "test"; `location` the names of the folders and the request.
    Raises CannotVerify if a script uses what the runner lacks, or runs out of time or memory.
    """
    where = " / ".join(location)
    script_name = "test" if event == "test" else "pre-request"
    state = {
        "scopes": {
            "local": scopes.local,
            "environment": scopes.environment,
            "collection": scopes.collection,
            "globals": scopes.globals,
        },
        "request": request,
        "response": response,
        "info": {
            "eventName": event,
            "requestName": location[-1],
            "requestId": request_id,
            "location": list(location),
            "environmentName": environment_name,
        },
    }
    context = quickjs.Context()
    context.set_memory_limit(SCRIPT_BYTES)
    try:
        context.set("__state", json.dumps(state))
        _load_libraries(context)
        run = context.get("__run")
        context.set_time_limit(seconds)
        for source in scripts:
            run(source)
            _finish_promises(context)
            outcome = json.loads(context.eval("__outcome()"))
            if outcome["unsupported"]:
                raise CannotVerify(
                    f"The {script_name} script of '{where}' uses {outcome['unsupported']}, which "
                    "this runner does not support. Run the collection in Postman or newman, or "
                    "take the call out."
                )
            if outcome["pending"]:
                raise CannotVerify(
                    f"The {script_name} script of '{where}' waits for a callback that never "
                    "comes: a pm.test with a 'done' argument is not supported unless it is called."
                )
            if outcome["error"] or outcome["skipRequest"]:
                break
        else:
            outcome = json.loads(context.eval("__outcome()"))
    except quickjs.JSException as error:
        raise CannotVerify(_limit_message(str(error), script_name, where, seconds)) from error
    scopes.local, scopes.environment, scopes.collection, scopes.globals = (
        outcome["scopes"][name] for name in ("local", "environment", "collection", "globals")
    )
    following = outcome.get("nextRequest")
    return ScriptRun(
        assertions=tuple(
            Assertion(
                one["name"],
                one["passed"],
                one["skipped"],
                Failure(**one["error"]) if one["error"] else None,
            )
            for one in outcome["assertions"]
        ),
        console=tuple(line["text"] for line in outcome["console"]),
        error=Failure(**outcome["error"]) if outcome["error"] else None,
        skip_request=outcome["skipRequest"],
        next_request=(following["name"],) if following is not None else None,
        request=outcome["request"],
    )


def _finish_promises(context: quickjs.Context) -> None:
    for _ in range(_MOST_PENDING_JOBS):
        if not context.execute_pending_job():
            return
    raise CannotVerify("A script's promises never end.")


def _limit_message(error: str, script_name: str, where: str, seconds: float) -> str:
    script = f"The {script_name} script of '{where}'"
    if "interrupted" in error:
        return f"{script} ran longer than {seconds:g} seconds and was stopped."
    if "out of memory" in error:
        return f"{script} used more than {SCRIPT_BYTES // 2**20} MiB of memory and was stopped."
    return f"{script} could not be run: {error.splitlines()[0]}"

"""Runs Postman's own runner, newman, from npm; and compares what it found with ours."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from npm import npm_package

VERSION = "6.2.2"

# (request, assertion) → "passed", "failed" or "skipped"; several of one name are numbered
Findings = dict[tuple[str, str, int], str]


def newman_command() -> list[str]:
    """How to call newman. Installs it into a cache as root or in CI; else skips the test."""
    if found := shutil.which("newman"):
        return [found]
    if shutil.which("node") is None:
        pytest.skip("newman needs Node, which is not installed")
    return [str(npm_package("newman", VERSION, ".bin/newman"))]


def run_newman(
    collection: Path, environment: Path, folder: Path, **variables: str
) -> tuple[int, Findings, str]:
    """(exit code, findings, what it printed). `folder` takes its JSON report."""
    report = folder / "newman.json"
    command = [*newman_command(), "run", str(collection), "-e", str(environment)]
    for key, value in variables.items():
        command += ["--env-var", f"{key}={value}"]
    command += ["--reporters", "cli,json", "--reporter-json-export", str(report)]
    command += ["--color", "off"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000, check=False)
    if not report.exists():
        raise RuntimeError(f"newman wrote no report:\n{done.stdout}\n{done.stderr}")
    found: Findings = {}
    for execution in json.loads(report.read_text())["run"]["executions"]:
        for one in execution.get("assertions") or []:
            state = "failed" if one.get("error") else "skipped" if one["skipped"] else "passed"
            _add(found, execution["item"]["name"], one["assertion"], state)
    return done.returncode, found, done.stdout


def findings_of(report: dict[str, list[dict[str, object]]]) -> Findings:
    """The same from the JSON report of `maestrale verify`."""
    found: Findings = {}
    for request in report["requests"]:
        assertions = request["assertions"]
        assert isinstance(assertions, list)
        for one in assertions:
            state = "failed" if not one["passed"] else "skipped" if one["skipped"] else "passed"
            _add(found, str(request["name"]), one["name"], state)
    return found


def _add(found: Findings, request: str, assertion: str, state: str) -> None:
    number = sum(key[:2] == (request, assertion) for key in found)
    found[request, assertion, number] = state

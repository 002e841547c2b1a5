"""Runs `maestrale verify` as a person does: in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from serving import ROOT, clean_environment

COLLECTION = ROOT / "postman" / "maestrale.postman_collection.json"
ENVIRONMENT = ROOT / "postman" / "maestrale.postman_environment.json"


@dataclass(frozen=True)
class Verified:
    """How a run ended: its exit code, what it printed, and its JSON (with `--json`)."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    def failed(self) -> set[tuple[str, str]]:
        """(request, assertion) of every failed check."""
        return {
            (request["name"], one["name"])
            for request in self.report["requests"]
            for one in request["assertions"]
            if not one["passed"]
        }

    def skipped(self) -> set[str]:
        return {
            request["name"]
            for request in self.report["requests"]
            for one in request["assertions"]
            if one["skipped"]
        }


def verify(*arguments: str, timeout: float = 1000.0) -> Verified:
    """`maestrale verify` with these arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "maestrale", "verify", *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Verified(done.returncode, done.stdout, done.stderr)

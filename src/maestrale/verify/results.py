"""What a run found: plain data for the table and the reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from maestrale.verify.sandbox import Assertion

CheckVerdict = Literal["pass", "fail", "could not run"]


@dataclass(frozen=True)
class RequestResult:
    """One request, its answer, and the assertions about it. Secrets are already hidden.

    Times in seconds. `problem` says why there is no whole answer, or why a script broke off.
    """

    folder: str
    name: str
    method: str
    url: str
    sent_body: str | None
    status: int | None = None
    reason: str = ""
    content_type: str = ""
    body: str = ""
    seconds: float = 0.0
    first_token: float | None = None
    tokens_per_second: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    assertions: tuple[Assertion, ...] = ()
    console: tuple[str, ...] = ()
    problem: str | None = None
    skipped: bool = False

    @property
    def location(self) -> str:
        return f"{self.folder} / {self.name}" if self.folder else self.name

    @property
    def failed(self) -> int:
        return sum(not one.passed for one in self.assertions) + (self.problem is not None)

    @property
    def passed(self) -> int:
        return sum(one.passed and not one.skipped for one in self.assertions)

    @property
    def skips(self) -> int:
        return sum(one.skipped for one in self.assertions)


@dataclass
class RunResult:
    """A whole run. `could_not_run` is the message if there is no verdict."""

    collection: str
    server: str
    model: str
    started: str  # ISO 8601, UTC
    requests: list[RequestResult] = field(default_factory=list)
    seconds: float = 0.0
    could_not_run: str | None = None

    @property
    def failed(self) -> int:
        return sum(one.failed for one in self.requests)

    @property
    def passed(self) -> int:
        return sum(one.passed for one in self.requests)

    @property
    def skips(self) -> int:
        return sum(one.skips + one.skipped for one in self.requests)

    @property
    def verdict(self) -> CheckVerdict:
        if self.could_not_run is not None:
            return "could not run"
        return "fail" if self.failed else "pass"

    @property
    def exit_code(self) -> int:
        return {"pass": 0, "fail": 1, "could not run": 2}[self.verdict]

    def closing_line(self) -> str:
        """The verdict in one line."""
        if self.could_not_run is not None:
            return f"COULD NOT RUN: {self.could_not_run}"
        skipped = f", {self.skips} skipped" if self.skips else ""
        counts = f"{len(self.requests)} requests, {self.passed} checks passed{skipped}"
        if self.failed:
            return f"FAIL: {self.failed} failed; {counts}, in {self.seconds:.1f} s"
        return f"PASS: {counts}, in {self.seconds:.1f} s"

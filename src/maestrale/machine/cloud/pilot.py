"""SkyPilot, asked through a process of its own environment (`pilot_worker.py`).

SkyPilot needs other versions of our own dependencies, takes seconds to import, and would start a
server that stays. The process lives as long as the command; its state is kept apart from that of
a SkyPilot of the user's own (`SKY_RUNTIME_DIR`), while credentials are read where clouds keep them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from maestrale.errors import (
    CloudRefused,
    CloudUnreachable,
    MachineError,
    NoCapacity,
    NoCredentials,
    NoSuchOffer,
    QuotaExceeded,
)

WORKER = Path(__file__).with_name("pilot_worker.py")


class Pilot:
    """`python` has SkyPilot; `state`: a folder for what SkyPilot keeps; `log`: what it prints."""

    def __init__(
        self, python: Path, state: Path, log: Path, environment: Mapping[str, str]
    ) -> None:
        self._python = python
        self._state = state
        self._log = log
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, action: str, **request: Any) -> Any:
        """Ask for one action and wait. Raises: what `failure` makes of a failure."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": action, **request}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise MachineError(
                f"SkyPilot's process ended while asked to {action}. What it said: {self._tail()}"
            )
        answer = json.loads(line)
        if "ok" in answer:
            return answer["ok"]
        raise failure(answer["failed"], answer["why"], self._log)

    def close(self) -> None:
        """End the process; what it launched in the cloud stays as it is."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # closing flushes, to nobody perhaps
                    pipe.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            environment = {
                **self._environment,
                "SKY_RUNTIME_DIR": str(self._state),
                "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
                # Importing SkyPilot without compiled files takes three times as long.
                "PYTHONPYCACHEPREFIX": str(self._python.parents[1] / "bytecode"),
                "PYTHONDONTWRITEBYTECODE": "",
            }
            environment.pop("PYTHONPATH", None)
            with self._log.open("ab") as log:
                try:
                    self._process = subprocess.Popen(  # noqa: S603
                        [str(self._python), str(WORKER)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        env=environment,
                        # Ctrl-C comes to us, and we say what is left behind.
                        start_new_session=True,
                    )
                except OSError as error:
                    raise MachineError(f"Can't run {self._python}: {error.strerror}.") from error
        return self._process

    def _tail(self) -> str:
        lines = (
            self._log.read_text("utf-8", "replace").strip().splitlines()
            if self._log.exists()
            else []
        )
        return " / ".join(lines[-3:]) or f"nothing (see {self._log})"


def failure(kind: str, why: str, log: Path) -> MachineError:
    """The worker's failure as one of ours."""
    text = f"{why[:600]}\nWhat SkyPilot did is in {log}."
    match kind:
        case "credentials":
            return NoCredentials(f"The cloud doesn't accept the credentials: {text}")
        case "capacity":
            return NoCapacity(f"The cloud has no such machine free right now: {text}")
        case "quota":
            return QuotaExceeded(
                f"Your account's quota doesn't allow this machine: {text}\nAsk the cloud for more, "
                "or choose another region or GPU."
            )
        case "network":
            return CloudUnreachable(f"The cloud can't be reached: {text}")
        case "no-offer":
            return NoSuchOffer(f"No cloud offers that: {text}")
        case "mismatch":
            return CloudRefused(
                "There is a machine of that name already, of another kind. Choose another --name, "
                f"or delete it first. {text}"
            )
        case _:
            return CloudRefused(text)

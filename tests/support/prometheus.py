"""The real Prometheus, on a free port with a folder of its own, and what Grafana would ask it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving import free_port


def installed() -> bool:
    return shutil.which("prometheus") is not None


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self._process = process

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an instant query gives. Raises: RuntimeError with Prometheus' reason."""
        return self._get("query", query=expression)["result"]

    def label_values(self, label: str, series: str) -> list[str]:
        """What a dashboard's variable would offer."""
        return self._get(f"label/{label}/values", **{"match[]": series})

    def until(self, expression: str, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Ask again until there is an answer. Raises: RuntimeError when none comes."""
        deadline = time.monotonic() + timeout
        while not (found := self.query(expression)):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"Prometheus has nothing for {expression}")
            time.sleep(0.2)
        return found

    def _get(self, path: str, **parameters: str) -> Any:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{parameters}: {error.read().decode()}") from error


@contextlib.contextmanager
def prometheus(config: Path, folder: Path) -> Iterator[Prometheus]:
    """Run it with this configuration; its data goes into `folder`."""
    port = free_port()
    log = folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        _await_ready(url, process, log)
        yield Prometheus(url, process)
    finally:
        process.terminate()
        process.wait(30)


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"prometheus did not start:\n{log.read_text()}")
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{url}/-/ready", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"prometheus was not ready in time:\n{log.read_text()}")


def filled_in(expression: str, window: str, **variables: str) -> str:
    """A panel's query as Grafana sends it: variables and intervals replaced."""
    for name, value in variables.items():
        expression = expression.replace(f"${name}", value)
    for interval in ("$__rate_interval", "$__interval", "$__range"):
        expression = expression.replace(interval, window)
    return expression

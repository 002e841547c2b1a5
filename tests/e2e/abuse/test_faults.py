"""The engine dies while hostile clients are at work: good answers don't change.

Kills at every point of an answer: `test_replay_http.py`. Signals to the server, and orphans:
`test_lifecycle.py`, `test_cycles.py`.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from typing import Any

import pytest

from faults import engine_pid, hit
from hostile_bodies import BAD_FIELDS
from hostile_http import MALFORMED

from .conftest import Target, good, unharmed
from .test_http import here

pytestmark = pytest.mark.model

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
BODIES: list[dict[str, Any]] = [
    good("Tell a story about the sea.", seed=1, max_tokens=40),
    good("Tell a story about the sea.", seed=2, max_tokens=40, n=2, logprobs=True),
    good("Tell a story about the sea.", temperature=0, max_tokens=40),
    good(
        "Describe a person.",
        seed=3, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    ),
]  # fmt: skip


def said(target: Target, body: dict[str, Any]) -> Any:
    answer = target.post(body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_engine_dies_amid_hostile_clients(hostile_server: Target, how: signal.Signals) -> None:
    target = hostile_server
    expected = [said(target, body) for body in BODIES]
    over = threading.Event()

    def attack() -> None:
        bad = list(BAD_FIELDS.values())
        raw = list(MALFORMED.values())
        for number in range(10_000):
            if over.is_set():
                return
            with contextlib.suppress(OSError):
                if number % 3:
                    target.exchange(here(raw[number % len(raw)]))
                else:
                    with socket.create_connection(target.address) as client:
                        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
            answer = target.post(good() | bad[number % len(bad)][0])
            assert answer.status_code == 400

    with unharmed(target, same_engine=False):
        attacker = threading.Thread(target=attack)
        attacker.start()
        try:
            answers: dict[int, Any] = {}

            def ask(index: int) -> None:
                answers[index] = said(target, BODIES[index])

            threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(BODIES))]
            for thread in threads:
                thread.start()
            target.until(lambda: target.slots()[0] > 0, "nothing runs")
            old = engine_pid(target.server)
            hit(target.server, how)
            for thread in threads:
                thread.join(120)
            assert [answers.get(index) for index in range(len(BODIES))] == expected
            assert engine_pid(target.server) != old
        finally:
            over.set()
            attacker.join(60)
            time.sleep(0.1)
        assert not attacker.is_alive()

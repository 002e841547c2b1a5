"""Hostile HTTP against a real uvicorn: each case ends with its status, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from hostile_http import (
    CHUNKED,
    GET,
    GOOD,
    MALFORMED,
    POST,
    TOO_LARGE,
    error_of,
    read_to_end,
    statuses,
    trickle,
)
from maestrale.api.dialects import DIALECTS
from maestrale.api.http.connections import ConnectionTable, connections_that_fit, raise_file_limit
from maestrale.api.http.limits import HttpLimits
from maestrale.api.http.protocol import protocol_class

LIMITS = HttpLimits(
    head_timeout=0.4,
    body_idle_timeout=0.4,
    body_timeout=1.0,
    max_connections=20,
    send_buffer=4096,
    stall_timeout=0.6,
    min_write_rate=1_000_000,
    write_window=1.0,
    linger=0.3,
    linger_total=2.0,
    linger_bytes=8 * 2**20,
    still_there=0.2,
)
PATIENT = dataclasses.replace(
    LIMITS,
    head_timeout=20,
    body_idle_timeout=20,
    body_timeout=20,
    stall_timeout=20,
    write_window=20,
)


class App:
    """Echoes the number of body bytes; other paths misbehave as their name says."""

    def __init__(self) -> None:
        self.started = 0
        self.ended: list[str] = []
        self.streamed = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.started += 1
        path = scope["path"]
        if path == "/early":
            await self.answer(send, 413, b"too large")
        elif path == "/three":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for piece in (b"one ", b"two ", b"three"):
                message = {"type": "http.response.body", "body": piece, "more_body": True}
                await send(message)
            await send({"type": "http.response.body", "body": b""})
        elif path == "/slow":
            await asyncio.sleep(0.3)
            await self.answer(send, 200, b"slow")
        elif path == "/late-read":
            await asyncio.sleep(1.2)
            await self.echo(scope, receive, send)
        elif path == "/stream":
            await self.stream(receive, send)
        elif path == "/hang":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.ended.append("disconnect")
        else:
            await self.echo(scope, receive, send)

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ended.append("disconnect")
                return
            size += len(message["body"])
            more = message["more_body"]
        names = [name.decode() for name, _ in scope["headers"]]
        body = {"path": scope["path"], "size": size, "headers": names}
        await self.answer(send, 200, json.dumps(body).encode())

    async def stream(self, receive: Any, send: Any) -> None:
        """Send for ever, until told of the disconnect."""
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        watching = asyncio.ensure_future(watch())
        self.streamed = 0
        while not watching.done():
            await send({"type": "http.response.body", "body": b"x" * 8192, "more_body": True})
            self.streamed += 8192
            await asyncio.sleep(0)
        self.ended.append("disconnect")

    async def answer(self, send: Any, status: int, body: bytes) -> None:
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Running:
    def __init__(self, limits: HttpLimits, loop: str) -> None:
        self.app = App()
        self.protocol = protocol_class(limits, dialects=DIALECTS)
        config = uvicorn.Config(
            self.app, http=self.protocol, ws="none", loop=loop, log_level="critical",
            lifespan="off", backlog=100,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()
        wait_until(lambda: self.server.started)

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self, timeout: float = 5) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def exchange(self, *pieces: bytes) -> bytes:
        """Send the pieces; give everything up to the close. Fails if there is no close in 5 s."""
        with self.connect() as client:
            for piece in pieces:
                client.sendall(piece)
            return read_to_end(client)

    def stop(self) -> None:
        self.server.force_exit = self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition didn't come true"
        time.sleep(0.01)


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def shared(request: pytest.FixtureRequest) -> Iterator[Running]:
    running = Running(LIMITS, request.param)
    yield running
    running.stop()


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def shared_patient(request: pytest.FixtureRequest) -> Iterator[Running]:
    running = Running(PATIENT, request.param)
    yield running
    running.stop()


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    """The server; after each test a good request works and no connection is left."""
    shared.app.ended.clear()
    yield shared
    all_is_well(shared)


@pytest.fixture
def patient(shared_patient: Running) -> Iterator[Running]:
    """As `server`, for what isn't about time: a pause of a busy machine is no slow client."""
    shared_patient.app.ended.clear()
    yield shared_patient
    all_is_well(shared_patient)


def all_is_well(running: Running) -> None:
    # Within a pause of the machine it may also have been found slow.
    wait_until(lambda: statuses(running.exchange(GOOD)) == [200])
    wait_until(lambda: running.connections == 0)
    assert len(running.protocol.table) == 0  # type: ignore[attr-defined]
    wait_until(lambda: not running.server.server_state.tasks)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("before", [b"", GET + b"\r\n", GET], ids=["new", "idle", "half a head"])
def test_a_request_on_its_way_when_the_server_ends_is_answered(loop: str, before: bytes) -> None:
    running = Running(HttpLimits(last_request=2.0), loop)
    with running.connect() as client, running.connect():
        client.sendall(before)
        if before.endswith(b"\r\n\r\n"):
            assert client.recv(10_000).startswith(b"HTTP/1.1 200")
        wait_until(lambda: running.connections == 2)
        running.server.should_exit = True
        wait_until(lambda: not any(each.is_serving() for each in running.server.servers))
        client.sendall(b"\r\n" if before == GET else GET + b"\r\n")
        answer = read_to_end(client)
    assert statuses(answer) == [200]
    assert b"connection: close" in answer.lower()
    running.thread.join(10)
    assert not running.thread.is_alive()


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_is_400_and_closed(patient: Running, case: str) -> None:
    answer = patient.exchange(MALFORMED[case])
    assert statuses(answer) == [400]
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize("case", TOO_LARGE)
def test_too_large_is_431_and_closed(patient: Running, case: str) -> None:
    started = patient.app.started
    answer = patient.exchange(TOO_LARGE[case])
    assert statuses(answer) == [431]
    error_of(answer)
    assert patient.app.started - started <= (1 if "trailers" in case else 0)


def test_line_feeds_with_no_end(patient: Running) -> None:
    assert statuses(patient.exchange(b"\r\n" * 50_000)) == [431]


def test_100_headers_and_a_large_one_are_fine(patient: Running) -> None:
    request = GET + b"Connection: close\r\n" + b"X: a\r\n" * 97 + b"Y: " + b"a" * 60_000
    assert statuses(patient.exchange(request + b"\r\n\r\n")) == [200]


@pytest.mark.parametrize("head", [b"GET / HT", GET, GET + b"X: a"])
def test_slow_head_is_408(server: Running, head: bytes) -> None:
    started = server.app.started
    answer = server.exchange(head)
    assert statuses(answer) == [408]
    assert error_of(answer)["code"] == "request_timeout"
    assert server.app.started == started


def test_a_byte_now_and_then_does_not_prolong_the_head(server: Running) -> None:
    with server.connect() as client:
        client.sendall(GET + b"X: ")
        assert trickle(client, 100) < 100


def test_a_silent_connection_is_closed_without_a_word(server: Running) -> None:
    assert server.exchange(b"") == b""


def test_slow_head_of_a_second_request(server: Running) -> None:
    assert statuses(server.exchange(GET + b"\r\n" + b"GET /")) == [200, 408]


def test_stopped_body_is_408(server: Running) -> None:
    answer = server.exchange(POST + b"Content-Length: 10\r\n\r\nabc")
    assert statuses(answer) == [408]
    wait_until(lambda: server.app.ended == ["disconnect"])


def test_trickled_body_is_408_after_the_total_time(server: Running) -> None:
    with server.connect() as client:
        client.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        assert trickle(client, 1000) < 100


def test_a_client_that_waits_for_the_application_is_not_late(server: Running) -> None:
    size = 1_000_000
    request = b"POST /late-read HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    answer = server.exchange(request + b"Content-Length: %d\r\n\r\n" % size, b"a" * size)
    assert statuses(answer) == [200]
    assert b'"size": 1000000' in answer


def test_short_body_then_fin(patient: Running) -> None:
    with patient.connect() as client:
        client.sendall(POST + b"Content-Length: 10\r\n\r\nabc")
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b""
    wait_until(lambda: patient.app.ended == ["disconnect"])


def test_trailers_do_not_become_headers(patient: Running) -> None:
    request = CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = patient.exchange(request + b"3\r\nabc\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
    assert statuses(answer) == [200]
    assert b"authorization" not in answer


def test_an_early_answer_arrives_whole_and_the_body_stays_unread(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n")
        client.sendall(b"a" * 300_000)
        answer = read_to_end(client)
        assert statuses(answer) == [413]
        assert b"connection: close" in answer
        assert answer.endswith(b"too large")
        assert trickle(client, 1000, b"a" * 65536, pause=0) < 500


def test_a_client_that_reads_only_when_it_has_sent_all_gets_the_early_answer(
    server: Running,
) -> None:
    """As most do. A body that is larger than what the kernel holds would end in a reset."""
    size = 6 * 2**20
    with server.connect() as client:
        head = b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        client.sendall(head + b"a" * size)
        assert statuses(read_to_end(client)) == [413]


def test_who_sends_for_ever_is_cut_off_at_last(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begun < 8:
                client.sendall(b"a" * 1000)
                time.sleep(0.02)
        assert time.monotonic() - begun < 6


@pytest.mark.parametrize("path", [b"/good", b"/slow"])
@pytest.mark.parametrize("body", [b"", b"hello"])
def test_a_client_that_ends_its_side_after_a_whole_request_gets_its_answer(
    server: Running, path: bytes, body: bytes
) -> None:
    with server.connect() as client:
        head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path, len(body))
        client.sendall(head + body)
        client.shutdown(socket.SHUT_WR)
        answer = read_to_end(client)
    assert statuses(answer)[-1] == 200
    assert b"connection: close" in answer or path == b"/good"


def test_pipelined_requests_before_the_end_are_all_answered(patient: Running) -> None:
    slow = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
    with patient.connect() as client:
        client.sendall(slow + slow)
        time.sleep(0.05)
        client.shutdown(socket.SHUT_WR)
        assert [status for status in statuses(read_to_end(client)) if status > 100] == [200, 200]


def test_one_who_has_left_altogether_is_told_from_one_who_waits(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: bool(server.server.server_state.tasks))
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.7)
        assert not server.app.ended, "it still reads"
    wait_until(lambda: server.app.ended == ["disconnect"], 3)


def test_a_stream_to_http_1_0_ends_with_the_connection_and_has_no_chunks(patient: Running) -> None:
    with patient.connect() as client:
        client.sendall(b"GET /three HTTP/1.0\r\n\r\n")
        answer = read_to_end(client)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert statuses(answer) == [200]
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body == b"one two three"
    chunked = patient.exchange(b"GET /three HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"transfer-encoding: chunked" in chunked


def test_an_answer_of_known_length_to_http_1_0(patient: Running) -> None:
    answer = patient.exchange(b"GET /good HTTP/1.0\r\n\r\n")
    assert statuses(answer) == [200]
    assert b"content-length" in answer


def test_endless_chunks_after_an_early_answer(server: Running) -> None:
    request = b"POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert statuses(server.exchange(request + b"3\r\nabc\r\n" * 1000)) == [413]


def test_continue_is_sent_when_the_application_reads(patient: Running) -> None:
    with patient.connect() as client:
        client.sendall(POST + b"Expect: 100-continue\r\nConnection: close\r\n")
        client.sendall(b"Content-Length: 3\r\n\r\n")
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        answer = read_to_end(client)
    assert statuses(answer) == [200]
    assert b'"size": 3' in answer


def test_no_continue_without_reading(patient: Running) -> None:
    request = b"POST /early HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
    answer = patient.exchange(request + b"Content-Length: 3\r\n\r\n")
    assert statuses(answer) == [413]
    assert b"connection: close" in answer


def test_pipelined_requests_are_answered_in_order(patient: Running) -> None:
    slow = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
    body = POST + b"Content-Length: 5\r\n\r\nhello"
    many = GET + b"\r\n"
    answer = patient.exchange(slow + body + many * 2000 + slow + GOOD)
    assert statuses(answer) == [200] * 2004
    first = answer.index(b"slow")
    assert first < answer.index(b'"size": 5') < answer.rindex(b"slow") < answer.index(b"/good")


def test_an_error_in_a_pipelined_request_leaves_the_earlier_answers_whole(patient: Running) -> None:
    slow = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
    for bad in (MALFORMED["NUL in a header"], MALFORMED["bad chunk size"], b"\0\0\r\n\r\n"):
        answer = patient.exchange(slow + slow + bad)
        assert statuses(answer) == [200, 200, 400]
        assert answer.count(b"slow") == 2
        error_of(answer)


def test_a_lost_client_is_told_to_the_request_at_work_and_not_only_to_the_last(
    patient: Running,
) -> None:
    with patient.connect() as client:
        client.sendall(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n" + GET + b"\r\n")
        wait_until(lambda: bool(patient.server.server_state.tasks))
        time.sleep(0.1)
    wait_until(lambda: patient.app.ended == ["disconnect"])


def test_an_upgrade_that_is_not_taken_is_plain_http(patient: Running) -> None:
    upgrade = GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    answer = patient.exchange(upgrade + b"HTTP2-Settings: AAMA\r\n\r\n" + GOOD)
    assert statuses(answer) == [200, 200]


def test_a_client_that_never_reads_is_cut_off(server: Running) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: server.app.ended == ["disconnect"])
        # What was sent lay in buffers: the client's, the kernel's, and write_high_water here.
        assert server.app.streamed < 2 * LIMITS.write_high_water + client.getsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF
        )


def test_a_client_that_reads_slowly_is_cut_off(server: Running) -> None:
    """It always makes some progress, but less than min_write_rate."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        client.settimeout(5)
        end = time.monotonic() + 15
        with contextlib.suppress(ConnectionResetError):
            while time.monotonic() < end and not server.app.ended:
                assert client.recv(8192)
                time.sleep(0.05)
    assert server.app.ended == ["disconnect"]


def test_a_client_that_reads_fast_enough_is_not_cut_off(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        end = time.monotonic() + 2 * LIMITS.write_window
        while time.monotonic() < end:
            assert client.recv(65536)
        assert not server.app.ended
    wait_until(lambda: server.app.ended == ["disconnect"])


def test_idle_sockets_give_way_to_others(patient: Running) -> None:
    idle = []
    for _ in range(150):
        idle.append(patient.connect())
        if len(idle) % 10 == 0:
            assert statuses(patient.exchange(GOOD)) == [200]
    assert patient.connections <= LIMITS.max_connections
    for client in idle:
        client.close()


def test_slow_heads_give_way_to_others(patient: Running) -> None:
    slow = []
    for _ in range(60):
        slow.append(patient.connect())
        slow[-1].sendall(GET)
    assert statuses(patient.exchange(GOOD)) == [200]
    for client in slow:
        client.close()


def test_requests_at_work_are_never_evicted(patient: Running) -> None:
    at_work = [patient.connect() for _ in range(LIMITS.max_connections)]
    for client in at_work:
        client.sendall(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: len(patient.server.server_state.tasks) == LIMITS.max_connections)
    with patient.connect() as client:
        answer = read_to_end(client)
    assert statuses(answer) == [503]
    assert b"retry-after: 1" in answer
    assert not patient.app.ended
    for client in at_work:
        client.close()
    wait_until(lambda: len(patient.app.ended) == LIMITS.max_connections)


def test_the_larger_group_loses_its_oldest() -> None:
    class Connection:
        evicted = False

        def evict(self) -> None:
            self.evicted = True

    table = ConnectionTable(4)
    a, b, c, d, e, f = (Connection() for _ in range(6))
    for connection in (a, b, c, d):
        assert table.admit(connection)
    table.set_receiving(a)
    assert table.admit(e)
    assert [x.evicted for x in (a, b, c, d)] == [False, True, False, False]
    for connection in (c, d, e):
        table.set_working(connection)
    assert table.admit(f)
    assert a.evicted
    table.set_working(f)
    assert not table.admit(a)
    assert len(table) == 4


def test_file_limit_is_raised_and_bounds_the_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        assert connections_that_fit(1024) == 384
        assert raise_file_limit() >= 512
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == raise_file_limit()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


OUT_OF_FILES = """
import os, resource, socket, threading, time
import uvicorn
from maestrale.api.dialects import DIALECTS
from maestrale.api.http.limits import HttpLimits
from maestrale.api.http.protocol import protocol_class

async def app(scope, receive, send):
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body"})

http = protocol_class(HttpLimits(max_connections=1000), dialects=DIALECTS)
config = uvicorn.Config(app, http=http, ws="none", loop="uvloop", lifespan="off", log_config=None)
server = uvicorn.Server(config)
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def limit():
    while not server.started:
        time.sleep(0.01)
    here = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 5, here + 5))
    print("ready", flush=True)
threading.Thread(target=limit).start()
server.run(sockets=[listener])
"""


def test_accepting_goes_on_after_running_out_of_files() -> None:
    """uvloop alone, which is what the server runs on; it sheds what it has no handle for."""
    command = [sys.executable, "-c", OUT_OF_FILES]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            assert process.stdout.readline() == "ready\n"
            idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
            assert not served(port)
            for client in idle:
                client.close()
            wait_until(lambda: served(port))
        finally:
            process.terminate()


def served(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as client:
            client.sendall(GOOD)
            return statuses(read_to_end(client)) == [200]
    except OSError:
        return False

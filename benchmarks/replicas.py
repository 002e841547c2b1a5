"""What replicas on Ray Serve give and cost, on this machine. Needs the extra ray.

    scripts/bench-replicas scale [--replicas 1 2 4 8 16 32] [--speeds 4] [--api-workers N]
    scripts/bench-replicas hop
    scripts/bench-replicas model [--streams 8]
    scripts/bench-replicas routing [--chats 8] [--turns 4]

scale: the scripted engine at a fixed speed, so that a replica is a known number of tokens/s: the
throughput of many against so many times that. The cores in use and the CPU time for a token, part
by part, tell which part gives way first: a slow speed for how replicas add up, several growing
ones (with `--sequences 64`, say) for where the API process ends.
hop: one engine behind the API process directly, and the same as one replica: CPU time for a token
and for a request, and the time of a request of one token, alone and sequential.
model: the bundled model with one core: one replica, and two with a core each.
routing: the bundled model, two replicas with a core each: conversations whose questions follow up
on what was said, by --replica-routing prefix and round_robin: the share of prompt tokens found in
the prefix cache, and the time to the first token of the follow-ups.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.front_end import children_of, cpu_seconds, free_port

WORDS = " The wind blows from the north along the valley to the sea."


def serve(port: str, flags: list[str], script: str) -> None:
    """In a process of its own: the server; with a script, on the scripted engine."""
    from msgspec.structs import replace

    from maestrale.config.reading import load_settings
    from maestrale.serve import hosting, server

    given = {"port": port, "log_level": "warning", "max_waiting": "4096"}
    given |= dict(flag.split("=", 1) for flag in flags)
    if script:
        plain = hosting.engine_config
        options = json.loads(script)
        hosting.engine_config = lambda *args: replace(plain(*args), options=options)
        given["engine"] = "scripted"
    server.run(load_settings(given, {}, None))


class Server:
    """One server with these settings; its processes by what they are."""

    def __init__(
        self, script: dict[str, Any] | None = None, cores: set[int] | None = None, **flags: Any
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="mst-bench-")
        self._log = Path(self._folder.name, "log")
        command = [sys.executable, "-m", "benchmarks.replicas", "serve", "--port", str(self.port)]
        command += ["--script", json.dumps(script) if script else ""]
        command += ["--flags", *(f"{name}={value}" for name, value in flags.items())]
        if cores is not None:
            command = ["taskset", "-c", ",".join(map(str, sorted(cores))), *command]
        import subprocess

        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def __enter__(self) -> Server:
        begun = time.monotonic()
        while time.monotonic() - begun < 400:
            if self.process.poll() is not None:
                raise SystemExit(f"the server did not start:\n{self._log.read_text()[-2000:]}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return self
            time.sleep(0.2)
        self.__exit__()
        raise SystemExit("the server did not start in time")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except Exception:
            self.process.kill()
        self._folder.cleanup()

    def wait_for_replicas(self, count: int) -> None:
        """Until so many are up."""
        begun = time.monotonic()
        while time.monotonic() - begun < 400:
            up = [each for each in self.status()["replicas"] if each["state"] == "up"]
            if len(up) >= count:
                return
            time.sleep(0.5)
        raise SystemExit(f"{count} replicas did not come up:\n{self._log.read_text()[-2000:]}")

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/status.json", timeout=30) as answer:
            return json.load(answer)

    def parts(self) -> dict[str, list[int]]:
        """The process ids of each part."""
        replicas = self.status()["replicas"]
        workers = children_of(self.process.pid, "workers.worker")
        engines = [each["engine_pid"] for each in replicas] or children_of(
            self.process.pid, "supervise.worker"
        )
        found = {"api": workers or [self.process.pid], "engine": engines}
        if workers:
            found["parent"] = [self.process.pid]
        if replicas:
            found["replica"] = [each["pid"] for each in replicas]
            known = {pid for pids in found.values() for pid in pids} | {self.process.pid}
            found["ray"] = [pid for pid in descendants(self.process.pid) if pid not in known]
        return found


def descendants(pid: int) -> list[int]:
    """All processes below this one."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def spent(parts: dict[str, list[int]]) -> dict[str, float]:
    """CPU seconds of each part so far; those of a process that is gone are not in it."""
    seconds = {}
    for name, pids in parts.items():
        seconds[name] = 0.0
        for pid in pids:
            with contextlib.suppress(OSError):
                seconds[name] += cpu_seconds([pid])
    return seconds


def body(model: str, tokens: int, words: str = "Speak.") -> bytes:
    request = {
        "model": model, "max_tokens": tokens, "ignore_eos": True, "stream": True,
        "messages": [{"role": "user", "content": words}], "temperature": 0,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    return json.dumps(request).encode()


async def ask(url: str, bodies: list[bytes]) -> list[Any]:
    """All at once. Raises: SystemExit for one that failed."""
    from maestrale.bench.client import BenchTarget, Client

    client = Client(BenchTarget(url), timeout=300)
    try:
        answers = await asyncio.gather(*map(client.ask, bodies))
    finally:
        client.close()
    for answer in answers:
        if answer.error:
            raise SystemExit(f"a stream failed: {answer.error}")
    return answers


def various(model: str, tokens: int, count: int) -> list[bytes]:
    """So many requests that differ from the start: equal ones would be kept together."""
    return [body(model, tokens, f"{index}: tell me about that.") for index in range(count)]


def run(url: str, bodies: list[bytes]) -> list[Any]:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(ask(url, bodies))


def tokens_of(answers: list[Any]) -> int:
    return sum(answer.usage.completion_tokens for answer in answers if answer.usage)


def median_ttft(answers: list[Any]) -> float:
    return statistics.median(each.first_token - each.started for each in answers)


def costs(before: dict[str, float], after: dict[str, float], units: float) -> str:
    return "  ".join(f"{k} {(after[k] - before[k]) / units * 1e6:.0f}" for k in before)


def scale(options: argparse.Namespace) -> None:
    print(f"load average before: {os.getloadavg()[0]:.1f}, cores: {os.cpu_count()}")
    print("replicas streams  tokens/s  of linear  first token")
    for speed in options.speeds:
        for count in options.replicas:
            scale_to(count, speed, options)


def scale_to(count: int, speed: float, options: argparse.Namespace) -> None:
    """So many replicas, each sequence of which gives `speed` tokens/s: one row."""
    script = {"text": WORDS, "tokens_per_second": f"{speed:g}"}
    sequences = options.sequences
    flags = {"replicas": count, "max_num_seqs": sequences, "api_workers": options.api_workers}
    # The places of all replicas together are what the queue lets in.
    with Server(script, **flags) as server:
        server.wait_for_replicas(count)
        model = server.status()["models"][0]
        streams, each = count * sequences, round(speed * options.seconds)
        run(server.url, various(model, max(2, round(speed)), streams))  # warm
        parts = {**server.parts(), "client": [os.getpid()]}
        before, begun = spent(parts), time.perf_counter()
        answers = run(server.url, various(model, each, streams))
        seconds = time.perf_counter() - begun
        after, tokens = spent(parts), tokens_of(answers)
        print(
            f"{count:8} {streams:7} {tokens / seconds:9.0f} "
            f"{tokens / seconds / (streams * speed):9.1%} {median_ttft(answers) * 1000:9.0f} ms"
        )
        cores = "  ".join(f"{k} {(after[k] - before[k]) / seconds:.2f}" for k in before)
        print(f"         cores in use: {cores}")
        print(f"         µs of CPU a token: {costs(before, after, tokens)}", flush=True)


def hop(options: argparse.Namespace) -> None:
    print(f"load average before: {os.getloadavg()[0]:.1f}, cores: {os.cpu_count()}")
    script = {"text": WORDS, "tokens_per_second": "100"}
    hops: tuple[tuple[str, dict[str, Any]], ...] = (
        ("no Ray", {}),
        ("one replica", {"replicas": 1}),
    )
    for name, flags in hops:
        with Server(script, max_num_seqs=64, **flags) as server:
            model = server.status()["models"][0]
            one = [body(model, 1)]
            run(server.url, one * 8)
            parts = server.parts()
            before = spent(parts)
            times = []
            for _ in range(options.requests):
                (answer,) = run(server.url, one)
                times.append((answer.first_token - answer.started) * 1000)
            requests = costs(before, spent(parts), options.requests)
            before = spent(parts)
            answers = run(server.url, various(model, 500, options.streams))
            tokens = costs(before, spent(parts), tokens_of(answers))
            quantiles = statistics.quantiles(times, n=20)
            print(f"{name}: a request of one token {statistics.median(times):.1f} ms "
                  f"(95 %: {quantiles[-1]:.1f})")  # fmt: skip
            print(f"  µs of CPU a request: {requests}")
            print(f"  µs of CPU a token, {options.streams} streams: {tokens}", flush=True)


def model(options: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))
    print(f"load average before: {os.getloadavg()[0]:.1f}, cores: {len(cores)}")
    for count in (1, 2):
        with Server(replicas=count, threads=1) as server:
            server.wait_for_replicas(count)
            if count == 1:  # one core for the one replica; two take one each
                for pid in server.parts()["engine"]:
                    for task in Path(f"/proc/{pid}/task").iterdir():
                        os.sched_setaffinity(int(task.name), cores[-1:])
            name = server.status()["models"][0]
            places = [f"Tell me about place number {index}." for index in range(options.streams)]
            run(server.url, [body(name, 8, place) for place in places])
            parts = server.parts()
            before, begun = spent(parts), time.perf_counter()
            answers = run(server.url, [body(name, options.tokens, place) for place in places])
            seconds = time.perf_counter() - begun
            cores_used = {k: (spent(parts)[k] - before[k]) / seconds for k in parts}
            print(
                f"{count} replica(s), a core each: {tokens_of(answers) / seconds:.1f} tokens/s at "
                f"{options.streams} streams, first token {median_ttft(answers) * 1000:.0f} ms; "
                "cores in use: " + "  ".join(f"{k} {v:.2f}" for k, v in cores_used.items()),
                flush=True,
            )


SUBJECTS = ("harbour", "mountain", "orchard", "library", "railway", "theatre", "island", "market")


def opening(number: int) -> list[dict[str, str]]:
    """The beginning of a conversation that no other shares, some 300 tokens of it."""
    subject = f"{SUBJECTS[number % len(SUBJECTS)]} {number}"
    facts = " ".join(f"Fact {fact} of the {subject}: {WORDS.strip()}" for fact in range(15))
    return [{"role": "system", "content": f"You know the {subject}. {facts}"}]


async def converse(client: Any, model: str, number: int, turns: int) -> list[float]:
    """One conversation, question after answer; seconds to the first token of each follow-up."""
    messages, waits = opening(number), []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn}: what is told of it?"})
        request = {
            "model": model, "messages": messages, "max_tokens": 16, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        answer = await client.ask(json.dumps(request).encode(), keep_text=True)
        if answer.error:
            raise SystemExit(f"a stream failed: {answer.error}")
        messages.append({"role": "assistant", "content": answer.text})
        if turn:
            waits.append(answer.first_token - answer.started)
    return waits


def converse_all(url: str, model: str, chats: int, turns: int, at_once: int) -> list[float]:
    """All conversations, `at_once` at a time."""
    import uvloop

    from maestrale.bench.client import BenchTarget, Client

    async def go() -> list[float]:
        client, places = Client(BenchTarget(url), timeout=300), asyncio.Semaphore(at_once)

        async def one(number: int) -> list[float]:
            async with places:
                return await converse(client, model, number, turns)

        try:
            return [
                wait for waits in await asyncio.gather(*map(one, range(chats))) for wait in waits
            ]
        finally:
            client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(go())


def cache_counts(server: Server) -> list[tuple[int, int]]:
    """(prompt tokens found in the cache, looked up) of each replica."""
    time.sleep(1.5)  # two beats: what replicas say of themselves is half a second old
    return [
        (each["prefix_cache_hits"], each["prefix_cache_queries"])
        for each in server.status()["replicas"]
    ]


def routing(options: argparse.Namespace) -> None:
    print(f"load average before: {os.getloadavg()[0]:.1f}, cores: {os.cpu_count()}")
    for way in ("round_robin", "prefix"):
        with Server(replicas=2, threads=1, replica_routing=way) as server:
            server.wait_for_replicas(2)
            name = server.status()["models"][0]
            run(server.url, [body(name, 8, f"{index}. Speak.") for index in range(4)])  # warm
            before = cache_counts(server)
            waits = converse_all(server.url, name, options.chats, options.turns, options.at_once)
            after = cache_counts(server)
            hits = sum(each[0] for each in after) - sum(each[0] for each in before)
            asked = sum(each[1] for each in after) - sum(each[1] for each in before)
            slow = statistics.quantiles(waits, n=20)[-1]
            print(
                f"{way:12} {len(waits)} follow-ups: {hits / asked:.1%} of {asked} prompt tokens "
                f"found in the cache, first token {statistics.median(waits) * 1000:.0f} ms "
                f"(95 %: {slow * 1000:.0f})",
                flush=True,
            )


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("scale")
    one.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    one.add_argument("--sequences", type=int, default=2, help="decoded at once by a replica")
    one.add_argument("--speeds", type=float, nargs="+", default=[4], help="tokens/s of a sequence")
    one.add_argument("--seconds", type=int, default=20, help="of each answer")
    one.add_argument("--api-workers", type=int, default=1, metavar="N")
    one = commands.add_parser("hop")
    one.add_argument("--requests", type=int, default=200)
    one.add_argument("--streams", type=int, default=16)
    one = commands.add_parser("model")
    one.add_argument("--streams", type=int, default=8)
    one.add_argument("--tokens", type=int, default=192, help="of each answer")
    one = commands.add_parser("routing")
    one.add_argument("--chats", type=int, default=8, help="conversations")
    one.add_argument("--turns", type=int, default=4, help="questions of each")
    one.add_argument("--at-once", type=int, default=4, help="conversations at the same time")
    one = commands.add_parser("serve", help=argparse.SUPPRESS)
    one.add_argument("--port")
    one.add_argument("--script", default="")
    one.add_argument("--flags", nargs="*", default=[])
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers end with it
    if options.command == "serve":
        serve(options.port, options.flags, options.script)
    else:
        {"scale": scale, "hop": hop, "model": model, "routing": routing}[options.command](options)


if __name__ == "__main__":
    main()

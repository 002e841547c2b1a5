"""Soak the server: requests in every dialect while engines, API workers and whole servers die.

    scripts/soak 30               for 30 minutes
    scripts/soak --kills 1000     so many engines, each soon after it is up

A server with the bundled model, a tiny one for embeddings, two API workers and --durable is
started; with --kills it has one model and one API process. The answer to each question, whole and
streamed, is first taken from it undisturbed; later the same question must get the same again, byte
for byte but for ids and times, whatever happens meanwhile. Clients send an Idempotency-Key, and
come again when their connection is lost: to a stream with Last-Event-ID, else with the same key. A
third of the questions have no seed: they are asked again with the seed that was reported. One in
eight is asked again with its key: that is the same answer, ids and times too. Bad requests must be
refused with their status and code; some clients leave in the middle.

Engines are killed with SIGKILL, every fifth suspended; of servers all processes at once, or the
first one alone, whose children must follow it. Exit code 1 if an answer was lost (none, an error,
an event missing or twice) or changed, if a bad request was not refused as expected, if something
is in work at the end or left behind, or if memory or open files grew from the first third of the
time to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path

import httpx

from benchmarks.resuming import Client, Lost, without_own
from benchmarks.served import Served
from benchmarks.soak.harm import LOOK_SECONDS, Harm, Tally, Watch
from benchmarks.soak.mix import CHAT, EMBEDDER, EMBEDDINGS, MODEL, Question, bad_requests, questions
from tiny_embedder import write_embedder

LINE_SECONDS = 10.0
WRONG = ("lost", "changed", "not refused", "left behind")


class Soak:
    """One run of it."""

    def __init__(self, served: Served, options: argparse.Namespace) -> None:
        self.served, self.options = served, options
        self.client = Client(served.url)
        self.tally = Tally()
        self.watch = Watch(served)
        left_out = EMBEDDINGS if options.kills else ""
        self.questions = [each for each in questions() if each.path != left_out]
        self.expected: dict[tuple[str, bool], bytes] = {}
        self.bad = bad_requests()
        self.begun = 0.0

    async def run(self) -> bool:
        """Whether all went well."""
        await self._take_answers()
        files = _files(self.served.folder)
        self.begun = time.monotonic()
        harm = Harm(self.served, self.tally, random.Random(self.options.seed))
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(self._report_live())]
            if self.options.kills:
                wait = harm.engines_at_once(self.options.kills, self.options.killed_after)
            else:
                wait = asyncio.sleep(self.options.minutes * 60)
                for role in ("engine", "API worker"):
                    mean = getattr(self.options, f"{role.split()[-1]}s_every")
                    background.append(group.create_task(harm.one(role, mean)))
                background.append(group.create_task(harm.servers(self.options.servers_every)))
            ended = asyncio.Event()
            clients = [
                group.create_task(self._work(number, ended))
                for number in range(self.options.concurrency)
            ]
            await wait
            ended.set()
            for task in background[1:]:
                task.cancel()
            await asyncio.wait(clients)
            background[0].cancel()
        minutes = (time.monotonic() - self.begun) / 60
        left = await self._in_work()
        code, processes = await asyncio.to_thread(self.served.stop)
        for name in processes:
            self.tally.fault("left behind", name)
        for name in sorted(_files(self.served.folder) - files):
            self.tally.fault("left behind", name)
        if left or code:
            self.tally.fault("left behind", f"in work: {left}, exit code: {code}")
        return self._table(minutes)

    async def _take_answers(self) -> None:
        print(f"Taking {len(self.questions)} answers undisturbed, to compare with ...", flush=True)
        for question in self.questions:
            for stream in (False, True)[: 1 + question.streams]:
                got = await self._ask(question, stream)
                self.expected[question.name, stream] = without_own(got)

    async def _ask(self, question: Question, stream: bool) -> bytes:
        ask = self.client.streamed if stream else self.client.whole
        return (await ask(question.path, question.body)).whole

    async def _work(self, number: int, ended: asyncio.Event) -> None:
        draw = random.Random(self.options.seed * 1000 + number)
        while not ended.is_set():
            share = draw.random()
            act = self._good if share < 0.75 else self._bad if share < 0.87 else self._abort
            await act(draw)

    async def _good(self, draw: random.Random) -> None:
        question = draw.choice(self.questions)
        stream = question.streams and draw.random() < 0.6
        background = bool(question.body.get("background"))
        # A queued response doesn't tell its seed yet; the key of a streamed one is kept at its end.
        seedless = "seed" in question.body and (stream or not background) and draw.random() < 1 / 3
        twice = draw.random() < 1 / 8 and not (stream and background)
        body = {
            name: each for name, each in question.body.items() if name != "seed" or not seedless
        }
        ask = self.client.streamed if stream else self.client.whole
        count, key = self.tally.counts, uuid.uuid4().hex
        name = f"{question.name}, {'streamed' if stream else 'whole'}"
        count["sent"] += 1
        try:
            got = await ask(question.path, body, key)
            wanted = self.expected[question.name, stream]
            if seedless:
                if got.seed is None:
                    raise Lost(f"no seed was told: {got.whole!r}")
                again = await ask(question.path, {**body, "seed": got.seed}, uuid.uuid4().hex)
                wanted = without_own(again.whole)
            if twice:
                count["asked again with the key"] += 1
                again = await ask(question.path, body, key)
                if again.whole != got.whole:
                    self.tally.fault("changed", f"{name}, again: {again.whole!r} {got.whole!r}")
        except Lost as error:
            self.tally.fault("lost", f"{name}: {error}")
            return
        count["answered"] += 1
        count[f"answers: {question.name.partition(',')[0]}"] += 1
        if without_own(got.whole) != wanted:
            self.tally.fault("changed", f"{name}: {got.whole!r} for {wanted!r}")

    async def _bad(self, draw: random.Random) -> None:
        bad = draw.choice(self.bad)
        self.tally.counts["bad"] += 1
        try:
            status, code = await self.client.refused(CHAT, bad.content)
        except (Lost, ValueError, KeyError) as error:
            self.tally.fault("not refused", f"{bad.name}: {type(error).__name__}: {error}")
            return
        if status == bad.status and bad.code in (None, code):
            self.tally.counts["refused"] += 1
        else:
            self.tally.fault("not refused", f"{bad.name}: {status} {code}")

    async def _abort(self, draw: random.Random) -> None:
        """Begin a stream and leave it; 0: while the prompt is read."""
        self.tally.counts["aborted"] += 1
        question = draw.choice([each for each in self.questions if each.path == CHAT])
        body = {**question.body, "stream": True, "max_tokens": 80}
        events, seen = draw.choice((0, 1, 3, 10)), 0
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with (
                asyncio.timeout(0.05 if not events else 30),
                self.client.http.stream("POST", CHAT, json=body) as answer,
            ):
                async for _ in answer.aiter_lines():
                    seen += 1
                    if seen > events:
                        return

    async def _report_live(self) -> None:
        told = self.begun
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            count, elapsed = self.tally.counts, int(now - self.begun)
            whole = self.options.kills or self.options.minutes * 60
            self.watch.look((count["engine killed"] if self.options.kills else elapsed) / whole)
            if now < told + LINE_SECONDS:
                continue
            told = now
            servers = sum(value for name, value in count.items() if name.startswith("servers"))
            print(
                f"{elapsed // 60:3}:{elapsed % 60:02}  sent {count['sent']}  answered "
                f"{count['answered']}  lost {count['lost']}  changed {count['changed']}  "
                f"killed {count['engine killed']}+{count['engine suspended']} engines "
                f"{count['API worker killed']} workers {servers} servers  {self.watch.line()}",
                flush=True,
            )

    async def _in_work(self) -> float:
        """How many requests are in work still, after half a minute without clients."""
        left = 0.0
        for _ in range(60):
            await asyncio.sleep(0.5)
            text = (await self.client.http.get("/metrics")).text
            found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.M)
            left = sum(map(float, found))
            if found and not left:
                break
        await self.client.http.aclose()
        return left

    def _table(self, minutes: float) -> bool:
        count = self.tally.counts
        rows, leaks = self.watch.report()
        disk = sum(each.stat().st_size for each in self.served.folder.glob("maestrale/*"))
        killed = sorted(name for name in count if "killed" in name or "suspended" in name)
        answers = sorted(name for name in count if name.startswith("answers: "))
        table: list[tuple[str, object]] = [
            ("minutes", f"{minutes:.1f}"),
            *((name, count[name]) for name in killed),
            ("requests sent", count["sent"]),
            ("answered", count["answered"]),
            *((f"  {name}", count[name]) for name in answers),
            ("lost", count["lost"]),
            ("changed", count["changed"]),
            ("asked again with their key", count["asked again with the key"]),
            ("times a client had to come again", self.client.came_again),
            ("bad requests", count["bad"]),
            ("refused as expected", count["refused"]),
            ("left by their client", count["aborted"]),
            *rows,
            ("on disk at the end", f"{disk / 1024:.0f} kB"),
            ("leaks", ", ".join(leaks) or "none"),
            ("left behind", count["left behind"]),
        ]
        print()
        for name, value in table:
            print(f"{name:44}{value}")
        return not leaks and not any(count[kind] for kind in WRONG)


def _files(folder: Path) -> set[str]:
    """What is there, but for the logs of writes of what is open."""
    found = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
    return {name for name in found if not name.endswith(("-wal", "-shm"))}


async def soak(options: argparse.Namespace, folder: Path) -> bool:
    """Whether all went well."""
    flags = ["--durable", *options.flags]
    if not options.kills:  # those are for one engine, and /health is to know at once that it is up
        embedder = write_embedder(folder / EMBEDDER)
        several = [str(embedder), "--pinned", EMBEDDER, "--keep-alive", "-1"]
        flags = [*several, "--api-workers", "2", *flags]
    served = Served(folder / "server", MODEL, *flags)
    try:
        await asyncio.to_thread(served.start)
        return await Soak(served, options).run()
    finally:
        served.kill()
        if options.keep_log:
            shutil.copy(served.log, options.keep_log)


def main() -> int:
    """Read the flags, and run it."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("minutes", type=float, nargs="?", default=30.0, metavar="MINUTES")
    parser.add_argument("--kills", type=int, default=0, metavar="N")
    parser.add_argument(
        "--killed-after", type=float, default=0.5, metavar="SECONDS",
        help="with --kills: CPU time for which an engine works on average (0.5)",
    )  # fmt: skip
    parser.add_argument("--concurrency", type=int, default=8, help="clients at once (8)")
    for what, seconds in (("engines", 30.0), ("workers", 60.0), ("servers", 120.0)):
        parser.add_argument(
            f"--{what}-every", type=float, default=seconds, metavar="SECONDS",
            help=f"on average, between two deaths of {what} ({seconds:.0f})",
        )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the mix's order (0)")
    parser.add_argument("--keep-log", metavar="FILE", help="copy the server's log there at the end")
    parser.add_argument(
        "--flags", type=shlex.split, default=[], metavar="TEXT", help="more, of `serve`"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and so through `finally`
    with tempfile.TemporaryDirectory(prefix="maestrale-soak-") as folder:
        well = asyncio.run(soak(options, Path(folder)))
    print("passed" if well else "FAILED")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

"""Who kills what in a soak, and what is looked at meanwhile: memory, open files, what is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import httpx

from benchmarks.served import Served, cpu_seconds, handles, resident

MIB = 1 << 20
GROWTH = {"server": 32 * MIB, "API worker": 32 * MIB, "engine": 64 * MIB, "vetting": 32 * MIB}
HANDLES_GROWTH = 16
SUSPEND_EVERY = 5
LOOK_SECONDS = 5.0
PARTS = 3
MOST_SHOWN = 10
MOST_PATIENCE = 20  # times its CPU time: it may be idle


@dataclass
class Tally:
    """What happened."""

    counts: Counter[str] = field(default_factory=Counter)

    def fault(self, kind: str, text: str) -> None:
        """Count what should not have happened; the first few are shown."""
        self.counts[kind] += 1
        if self.counts[kind] <= MOST_SHOWN:
            print(f"{time.strftime('%H:%M:%S')} {kind}: {text}", flush=True)


class Harm:
    """Kills processes of a server at random times."""

    def __init__(self, served: Served, tally: Tally, draw: random.Random) -> None:
        self.served, self.tally = served, tally
        self._draw = draw
        self._whole = asyncio.Lock()  # the server as a whole is there

    async def one(self, role: str, mean: float) -> None:
        """For ever: one process of a kind, now this, now that one."""
        counts = self.tally.counts
        while True:
            await asyncio.sleep(self._draw.expovariate(1 / mean))
            async with self._whole:
                there = [pid for pid, what in self.served.processes().items() if what == role]
                if not there:
                    continue
                counts[f"{role} faults"] += 1
                suspend = role == "engine" and counts[f"{role} faults"] % SUSPEND_EVERY == 0
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._draw.choice(there), (signal.SIGKILL, signal.SIGSTOP)[suspend])
                    counts[f"{role} {'suspended' if suspend else 'killed'}"] += 1

    async def engines_at_once(self, kills: int, mean: float) -> None:
        """So many engines, each when it has worked for `mean` seconds of CPU time on average: in
        prefill, decode or replay.
        """
        counts = self.tally.counts
        async with httpx.AsyncClient(base_url=self.served.url, timeout=30) as client:
            while counts["engine killed"] < kills:
                await asyncio.sleep(0.02)
                if (await client.get("/health")).json()["status"] != "ready":
                    continue
                works = self._draw.expovariate(1 / mean)
                for pid, role in self.served.processes().items():
                    if role != "engine":
                        continue
                    begun = cpu_seconds(pid)
                    for _ in range(int(MOST_PATIENCE * works / 0.01)):
                        if cpu_seconds(pid) >= begun + works:
                            break
                        await asyncio.sleep(0.01)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        counts["engine killed"] += 1

    async def servers(self, mean: float) -> None:
        """For ever: all processes at once, or the first one alone, whose children are to follow it;
        then it is started again.
        """
        counts = self.tally.counts
        while True:
            await asyncio.sleep(self._draw.expovariate(1 / mean))
            async with self._whole:
                if self._draw.random() < 0.5:
                    await asyncio.to_thread(self.served.kill)
                    counts["servers killed, all processes at once"] += 1
                else:
                    left = await asyncio.to_thread(self.served.kill_first)
                    counts["servers killed, their first process alone"] += 1
                    if left:
                        self.tally.fault("left behind", ", ".join(left))
                await asyncio.to_thread(self.served.start)


class Watch:
    """The most that a process of each kind had, in each third of the time."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._most: dict[str, list[dict[str, int]]] = {
            what: [defaultdict(int) for _ in range(PARTS)] for what in ("memory", "open files")
        }

    def look(self, share: float) -> None:
        """`share` of the time has passed."""
        part = min(PARTS - 1, int(share * PARTS))
        for pid, role in self._served.processes().items():
            for what, value in (("memory", resident(pid)), ("open files", handles(pid))):
                most = self._most[what][part]
                most[role] = max(most[role], value)

    def report(self) -> tuple[list[tuple[str, str]], list[str]]:
        """Rows of a table, and what has grown too much from the first third to the last."""
        rows, leaks = [], []
        for what, parts in self._most.items():
            for role in sorted(parts[0].keys() & parts[-1].keys()):
                values = [part[role] for part in parts]
                grown, bound = values[-1] - values[0], HANDLES_GROWTH
                shown = ", ".join(map(str, values))
                if what == "memory":
                    bound = GROWTH[role]
                    shown = ", ".join(str(value // MIB) for value in values) + " MiB"
                rows.append((f"{role}, most {what} in each third", shown))
                if grown > bound:
                    leaks.append(f"{role}: {what}")
        return rows, leaks

    def line(self) -> str:
        """What each kind has now, in words."""
        found: dict[str, list[int]] = defaultdict(list)
        for pid, role in self._served.processes().items():
            found[role].append(resident(pid) // MIB)
        return "  ".join(f"{role} {'+'.join(map(str, each))}" for role, each in found.items())

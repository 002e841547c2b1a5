"""`maestrale bench`: put load on a server and measure what it gives."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.text import Text

from maestrale import __version__
from maestrale.bench import report as reports
from maestrale.bench.apis import APIS, BenchApi
from maestrale.bench.client import BenchTarget, Client
from maestrale.bench.conversation import BenchConversation, WorkloadOptions
from maestrale.bench.file import from_file
from maestrale.bench.load import Generator, LoadPoint, points
from maestrale.bench.progress import BenchProgress
from maestrale.bench.results import BenchReport, measure
from maestrale.bench.statistics import Bounds, parse_bounds
from maestrale.bench.workloads import NAMES, adjusted, conversations
from maestrale.cli.api_key import api_key_options
from maestrale.cli.echo import echo
from maestrale.cli.parameters import FiniteRange
from maestrale.console import CleanConsole
from maestrale.errors import CannotBench, CannotVerify, MaestraleError
from maestrale.verify.preflight import first_model
from maestrale.verify.runner import RunOptions

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_CONCURRENCY = (1, 8, 32)
DEFAULT_DURATION = 30.0
T = TypeVar("T")
_FILE = click.Path(path_type=Path, dir_okay=False)


class NumberList(click.ParamType[Any]):
    """Numbers with commas between them: `1,8,32`."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str):
            return value
        try:
            numbers = tuple(self._kind(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(0 < number < 1e6 for number in numbers):
            what = "whole numbers" if self._kind is int else "numbers"
            self.fail(f"{value!r}: give {what} above 0 with commas between, as 1,8,32.", param, ctx)
        return numbers


class Range(click.ParamType[Any]):
    """Two whole numbers, `16-1024`, or one for both."""

    name = "range"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"([0-9]{1,7})(?:-([0-9]{1,7}))?", value.strip())
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < low <= high:
            self.fail(f"{value!r}: give a range of whole numbers, as 16-1024.", param, ctx)
        return low, high


@click.command("bench", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url", required=False)
@api_key_options
@click.option("--model", help="Model to ask. Default: the first that the server lists.")
@click.option(
    "--api",
    "api_name",
    type=click.Choice(tuple(APIS)),
    default="chat",
    show_default=True,
    help="How it is asked: the same words in another API. Embeddings and scores are of these.",
)
@click.option(
    "--workload",
    type=click.Choice(NAMES),
    default="chat",
    show_default=True,
    help="What is asked. questions, article and json are those of the Postman collection.",
)
@click.option("--file", "file", type=_FILE, help="Ask what is in this file (JSONL) instead.")
@click.option(
    "--concurrency",
    type=NumberList(int),
    metavar="N,...",
    help="Closed loop: so many requests at once, one load after the other. [1,8,32]",
)
@click.option(
    "--rate",
    type=NumberList(float),
    metavar="R,...",
    help="Open loop: so many conversations a second, at random times (Poisson).",
)
@click.option(
    "--duration",
    type=FiniteRange(min=0.1),
    metavar="SECONDS",
    help="Length of each load. [30, without --requests]",
)
@click.option(
    "--requests", type=click.IntRange(min=1), metavar="N", help="End each load after N requests."
)
@click.option(
    "--warm-up",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    metavar="N",
    help="Conversations before anything counts.",
)
@click.option("--slo", help="Bounds of a good answer, as ttft:500ms,tpot:50ms (or itl, e2e).")
@click.option("--max-tokens", type=click.IntRange(min=1), help="For every answer.")
@click.option("--ignore-eos", is_flag=True, help="Let answers run to max_tokens, if it can.")
@click.option(
    "--input-words",
    type=Range(),
    default=(16, 1024),
    metavar="RANGE",
    help="Workload random: words of a prompt. [16-1024]",
)
@click.option(
    "--output-tokens",
    type=Range(),
    default=(16, 256),
    metavar="RANGE",
    help="Workload random: max_tokens of an answer. [16-256]",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of prompts, order and arrivals."
)
@click.option(
    "--timeout",
    type=FiniteRange(min=0.1),
    default=300.0,
    show_default=True,
    help="Longest time for one request and its answer, in seconds.",
)
@click.option("--report", "html", type=_FILE, help="Write an HTML report with plots: one file.")
@click.option("--json", "to_json", type=_FILE, help="Write everything as JSON; - prints it.")
def command(
    url: str | None,
    api_key: str | None,
    model: str | None,
    api_name: str,
    workload: str,
    file: Path | None,
    concurrency: tuple[int, ...] | None,
    rate: tuple[float, ...] | None,
    duration: float | None,
    requests: int | None,
    warm_up: int,
    slo: str | None,
    max_tokens: int | None,
    ignore_eos: bool,
    input_words: tuple[int, int],
    output_tokens: tuple[int, int],
    seed: int,
    timeout: float,
    html: Path | None,
    to_json: Path | None,
) -> int:
    """Load the API at URL (default: http://127.0.0.1:8000) and measure it.

    Any server that streams with usage. docs/guide/bench.md explains the APIs, the workloads and the
    measures.

    Exit code 0: measured. 1: no request of some load succeeded. 2: it could not be run.
    """
    if duration is None and requests is None:
        duration = DEFAULT_DURATION
    if concurrency is None and rate is None:
        concurrency = DEFAULT_CONCURRENCY
    printed = str(to_json) == "-"
    out = CleanConsole(stderr=printed)
    try:
        for path in (html, None if printed else to_json):
            _check_folder(path)
        bounds = parse_bounds(slo) if slo else None
        api = APIS[api_name]
        _check_whole(api, slo, max_tokens, ignore_eos)
        target = BenchTarget(url or DEFAULT_URL, api.key_headers(api_key), api)
        options = WorkloadOptions(
            seed=seed,
            max_tokens=max_tokens,
            input_words=input_words,
            output_tokens=output_tokens,
            ignore_eos=ignore_eos,
        )
        if file is not None:
            series = adjusted(from_file(file, options), options)
        else:
            series = conversations(workload, options)
        if model is None:
            model = _run(first_model(target.url, api_key or "", RunOptions(seconds=timeout)))
        loads = points(
            concurrency or (), rate or (), duration=duration, requests=requests, seed=seed
        )
        found = BenchReport(
            maestrale=__version__,
            started=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            server=target.url,
            model=model,
            api=api.name,
            workload=str(file) if file is not None else workload,
            seed=seed,
            bounds=str(bounds or ""),
            machine=f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}",
            command=_command_line(),
        )
        client = Client(target, timeout=timeout)
        _run(_bench(client, found, series, loads, warm_up, bounds, out))
    except (CannotBench, CannotVerify) as error:
        out.print(Text(f"Could not be measured: {error}", style="bold yellow"), soft_wrap=True)
        return 2
    reports.print_report(out, found)
    if printed:
        echo(reports.as_json(found))
    else:
        _write(to_json, reports.as_json, found)
    _write(html, reports.as_html, found)
    return 0 if all(one.succeeded for one in found.measurements) else 1


async def _bench(
    client: Client,
    found: BenchReport,
    series: Iterator[BenchConversation],
    loads: list[LoadPoint],
    warm_up: int,
    bounds: Bounds | None,
    out: Console,
) -> None:
    generator = Generator(client, found.model, series)
    what = f"{found.server} · {found.model} · {found.api} · {found.workload}"
    out.print(Text(what, style="dim"))
    with BenchProgress(out, len(loads)) as progress:
        if warm_up:
            run = await generator.warm_up(warm_up, warm_up)
            _stop_if_hopeless([record.exchange.error for record in run.records])
        for load in loads:
            progress.begin(str(load))
            run = await generator.run(load, progress.watch)
            found.measurements.append(measure(run, bounds))
    client.close()


def _check_whole(api: BenchApi, slo: str | None, max_tokens: int | None, ignore_eos: bool) -> None:
    """Raises: CannotBench for what can't be asked of answers that come whole, without tokens."""
    if api.streams:
        return
    if max_tokens is not None or ignore_eos:
        raise CannotBench(
            "--max-tokens and --ignore-eos are of answers; embeddings and scores have no tokens."
        )
    if slo and parse_bounds(slo).most.keys() != {"e2e"}:
        raise CannotBench(
            "--slo: embeddings and scores come whole: they can be bounded by e2e alone."
        )


def _stop_if_hopeless(errors: list[str | None]) -> None:
    """Raises: CannotBench when not one request of the warm-up succeeded."""
    reasons = sorted({error for error in errors if error is not None})
    if errors and all(errors):
        raise CannotBench(
            f"All {len(errors)} requests of the warm-up failed: {'; '.join(reasons)}. "
            "'maestrale verify' tells more about what this server does."
        )


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop, where there is one: the generator must cost as little as it can."""
    factory = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def _command_line() -> str:
    """The command as given, to be repeated; without the key."""
    shown: list[str] = []
    for argument in sys.argv[1:]:
        if shown and shown[-1] == "--api-key":
            argument = "..."
        elif argument.startswith("--api-key="):
            argument = "--api-key=..."
        shown.append(argument)
    return shlex.join(["maestrale", *shown])


def _check_folder(path: Path | None) -> None:
    if path is not None and not path.absolute().parent.is_dir():
        raise CannotBench(f"Can't write {path}: the folder {path.parent} does not exist.")


def _write(path: Path | None, make: Callable[[BenchReport], str], found: BenchReport) -> None:
    if path is None:
        return
    try:
        path.write_text(make(found), encoding="utf-8")
    except OSError as error:
        raise MaestraleError(f"Can't write {path}: {error.strerror}.") from error

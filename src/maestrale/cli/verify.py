"""`maestrale verify`: run the Postman collection against a server and give a verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from maestrale.cli.api_key import api_key_options
from maestrale.cli.echo import echo
from maestrale.cli.parameters import FiniteRange
from maestrale.config.addresses import server_url
from maestrale.console import CleanConsole
from maestrale.errors import CannotVerify, MaestraleError
from maestrale.verify import report
from maestrale.verify.collection import (
    Collection,
    Environment,
    bundled_collection,
    bundled_environment,
    read_collection,
    read_environment,
)
from maestrale.verify.preflight import first_model
from maestrale.verify.results import RunResult
from maestrale.verify.runner import RunOptions, new_result, run
from maestrale.verify.terminal import RunProgress, print_failures

DEFAULT_URL = "http://127.0.0.1:8000"
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("verify", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url", required=False)
@api_key_options
@click.option("--model", help="Model to ask. Default: the first that the server lists.")
@click.option("--collection", type=_FILE, help="Another Postman collection (v2.1) to run.")
@click.option("--environment", type=_FILE, help="Its Postman environment.")
@click.option("--folder", multiple=True, help="Only this folder or request. May be repeated.")
@click.option(
    "--timeout",
    type=FiniteRange(min=0.1),
    default=300.0,
    show_default=True,
    help="Longest time for one request and its answer, in seconds.",
)
@click.option(
    "--connect-timeout",
    type=FiniteRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Longest time to connect, in seconds.",
)
@click.option("--report", "html", type=_FILE, help="Write an HTML report: one file, to be sent.")
@click.option("--junit", type=_FILE, help="Write JUnit XML, for CI.")
@click.option("--json", "to_json", is_flag=True, help="Print the whole result as JSON instead.")
def command(
    url: str | None,
    api_key: str | None,
    model: str | None,
    collection: Path | None,
    environment: Path | None,
    folder: tuple[str, ...],
    timeout: float,
    connect_timeout: float,
    html: Path | None,
    junit: Path | None,
    to_json: bool,
) -> int:
    """Prove that the chat API at URL works (default: http://127.0.0.1:8000).

    Exit code 0: every check passed. 1: a check failed. 2: it could not be run.
    """
    options = RunOptions(seconds=timeout, connect_seconds=connect_timeout, folders=folder)
    out = CleanConsole(stderr=to_json)
    result = new_result(str(collection or "maestrale"), url or DEFAULT_URL, model or "")
    try:
        for path in (html, junit):
            _check_folder(path)
        wanted = read_collection(collection or bundled_collection())
        values = _environment(url, api_key, model, collection, environment)
        result.collection = wanted.name
        result.server = str(values.values["baseUrl"])
        asyncio.run(_verify(wanted, values, options, result, out))
    except CannotVerify as error:
        result.could_not_run = str(error)
    print_failures(out, result)
    tone = {"pass": "bold green", "fail": "bold red"}.get(result.verdict, "bold yellow")
    out.print()
    out.print(Text(result.closing_line(), style=tone), soft_wrap=True)
    if to_json:
        echo(report.as_json(result))
    _write(html, report.as_html, result)
    _write(junit, report.as_junit, result)
    return result.exit_code


async def _verify(
    collection: Collection,
    environment: Environment,
    options: RunOptions,
    result: RunResult,
    out: Console,
) -> None:
    values = environment.values
    asks_for_model = any("{{model}}" in f"{one.url}{one.body}" for one in collection.requests)
    if asks_for_model and not values.get("model"):
        server, key = str(values["baseUrl"]), str(values.get("apiKey") or "")
        values["model"] = result.model = await first_model(server, key, options)
    with RunProgress(out) as progress:
        await run(collection, environment, options, result, progress.started, progress.finished)


def _environment(
    url: str | None,
    api_key: str | None,
    model: str | None,
    collection: Path | None,
    environment: Path | None,
) -> Environment:
    """The environment's values, with what the command line gives put over them."""
    if environment is None and collection is None:
        environment = bundled_environment()
    found = Environment("", {}, ()) if environment is None else read_environment(environment)
    given = {"baseUrl": url, "apiKey": api_key, "model": model}
    values = {**found.values, **{key: value for key, value in given.items() if value is not None}}
    values["baseUrl"] = server_url(str(values.get("baseUrl") or DEFAULT_URL))
    return Environment(found.name, values, found.secrets)


def _check_folder(path: Path | None) -> None:
    if path is not None and not path.absolute().parent.is_dir():
        raise CannotVerify(f"Can't write {path}: the folder {path.parent} does not exist.")


def _write(path: Path | None, make: Callable[[RunResult], str], result: RunResult) -> None:
    if path is None or not path.absolute().parent.is_dir():
        return
    try:
        path.write_text(make(result), encoding="utf-8")
    except OSError as error:
        raise MaestraleError(f"Can't write {path}: {error.strerror}.") from error

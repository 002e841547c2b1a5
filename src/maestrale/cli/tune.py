"""`maestrale tune`: measure which settings of the engine are fastest here, and keep them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maestrale.cli.echo import echo
from maestrale.config.paths import default_cache_dir
from maestrale.config.settings import BUNDLED_MODEL

if TYPE_CHECKING:
    from maestrale.engines.cpu.tuning import Tuning


@click.command("tune")
@click.argument("model", default=BUNDLED_MODEL)
@click.option("--threads", type=click.IntRange(1, 4096), help="Don't try others than this.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where prepared models are kept, as for serve.",
)
def command(model: str, threads: int | None, as_json: bool, cache_dir: Path | None) -> None:
    """Measure which settings of the CPU engine are fastest for MODEL here, and keep them.

    Threads, and the size of a step. `maestrale serve` uses the result wherever its own options
    leave these open. Takes a minute or two with small models; let nothing else run.
    """
    import msgspec

    from maestrale.engines.base import EngineConfig
    from maestrale.engines.cpu.tuning import NOTES, tune
    from maestrale.models.resolve import prepare
    from maestrale.serve.progress import StartProgress

    with StartProgress(lambda phase: None) as progress:
        folder = prepare(model, cache_dir or default_cache_dir(), progress.update)
        config = EngineConfig(engine="cpu", model_dir=str(folder), threads=threads)
        result, kept = tune(config, progress.update)
    if as_json:
        fields: dict[str, Any] = msgspec.to_builtins(result)
        echo(msgspec.json.encode(fields | {"gain": result.gain, "kept": kept}).decode())
    else:
        _show(result, Path(model).name)
    if not kept:
        echo(f"It can't be kept: {folder / NOTES} can't be written.", err=True)
        raise SystemExit(1)
    if not as_json:
        echo("Kept for this machine; 'maestrale serve' uses it.")


def _show(result: Tuning, model: str) -> None:
    from rich.table import Table

    table = Table(title=f"{model}: tokens/s with 1, 8, 32 streams", title_justify="left")
    for name in ("threads", "step", "1", "8", "32", "prefill", "score", ""):
        table.add_column(name, justify="left" if not name else "right")
    default = result.measured[0].score
    for entry in result.measured:
        choice = entry.choice
        rates = (entry.decode_1, entry.decode_8, entry.decode_32, entry.prefill)
        table.add_row(
            str(choice.threads),
            str(choice.step_tokens),
            *(f"{rate:.0f}" for rate in rates),
            f"{entry.score / default:.2f}",
            "chosen" if choice == result.best else "",
        )
    from maestrale.console import CleanConsole

    console = CleanConsole()
    console.print(table)
    best = result.best
    threads = "thread" if best.threads == 1 else "threads"
    console.print(
        f"Chosen: {best.threads} {threads}, steps of up to {best.step_tokens} tokens; "
        f"{result.gain:.2f} times the default's speed (geometric mean)."
    )

"""`maestrale tune`: measure which settings of the engine are fastest here, and keep them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from maestrale.cli.echo import echo
from maestrale.config import BUNDLED_MODEL, default_cache_dir

if TYPE_CHECKING:
    from maestrale.engines.openvino.tuning import Tuning


@click.command("tune")
@click.argument("model", default=BUNDLED_MODEL)
@click.option(
    "--deterministic/--no-deterministic",
    default=True,
    help="Measure for this mode; each has its own result. [deterministic]",
)
@click.option("--threads", type=click.IntRange(1, 4096), help="Don't try others than this.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where converted models are kept, as for serve.",
)
def command(
    model: str, deterministic: bool, threads: int | None, as_json: bool, cache_dir: Path | None
) -> None:
    """Measure which settings of the CPU engine are fastest for MODEL here, and keep them.

    Threads, the form of the weights, the size of a step (--deterministic: with the form a8 only,
    as the others' steps have their own bound) and the memory of the KV cache. `maestrale serve`
    uses the result wherever its own options leave these open. Takes two or three minutes; let
    nothing else run.
    """
    import msgspec

    from maestrale.api.progress import Progress
    from maestrale.engines.base import EngineConfig
    from maestrale.engines.openvino.tuning import NOTES, tune
    from maestrale.models.resolve import prepare

    with Progress(lambda phase: None) as progress:
        folder = prepare(model, cache_dir or default_cache_dir(), progress.update)
        config = EngineConfig(
            engine="openvino",
            model_dir=str(folder),
            deterministic=deterministic,
            threads=threads,
        )
        result, kept, left_out = tune(config, progress.update)
    if as_json:
        fields: dict[str, Any] = msgspec.to_builtins(result)
        fields |= {"gain": result.gain, "kept": kept, "left_out": left_out}
        echo(msgspec.json.encode(fields).decode())
        return
    _show(result, Path(model).name)
    for name, reason in left_out.items():
        echo(f"Not tried: {name} weights: {reason.rstrip('.')}.")
    if not kept:
        echo(f"It can't be kept: {folder / NOTES} can't be written.", err=True)
        raise SystemExit(1)
    echo("Kept for this machine; 'maestrale serve' uses it.")


def _show(result: Tuning, model: str) -> None:
    from rich.table import Table

    table = Table(title=f"{model}: tokens/s with 1, 8, 32 streams", title_justify="left")
    for name in ("weights", "threads", "step", "1", "8", "32", "prefill", "score", ""):
        table.add_column(name, justify="left" if name in ("weights", "") else "right")
    default = result.measured[0].score
    for entry in result.measured:
        choice = entry.choice
        table.add_row(
            choice.weight_format,
            str(choice.threads),
            str(choice.step_tokens),
            *(
                f"{rate:.0f}"
                for rate in (entry.decode_1, entry.decode_8, entry.decode_32, entry.prefill)
            ),
            f"{entry.score / default:.2f}",
            "chosen" if choice == result.best else "",
        )
    from maestrale.console import CleanConsole

    console = CleanConsole()
    console.print(table)
    best = result.best
    threads = "thread" if best.threads == 1 else "threads"
    console.print(
        f"Chosen: {best.weight_format} weights, {best.threads} {threads}, "
        f"{best.kv_cache_bytes >> 20} MiB for the KV cache; {result.gain:.2f} times the default's "
        "speed (geometric mean)."
    )

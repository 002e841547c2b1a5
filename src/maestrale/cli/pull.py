"""`maestrale pull`: fetch a model before it is served, with access tested first."""

from __future__ import annotations

import os

import click

from maestrale.cli.echo import echo
from maestrale.config.hub import hub_settings
from maestrale.config.reading import load_settings


@click.command("pull")
@click.argument("model")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit. Default: main.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "cpu", "vllm"]),
    default="auto",
    help="The engine it is for; auto picks by this machine.",
)
@click.option(
    "--no-convert",
    is_flag=True,
    help="Only fetch. Else what a GGUF file says of its tokenizer is read and kept, too.",
)
def command(model: str, revision: str | None, engine: str, no_convert: bool) -> None:
    """Fetch MODEL from the Hugging Face hub, with only the files that its engine needs.

    MODEL is a known name, ORG/NAME, or ORG/NAME:VARIANT for one of several GGUF files
    (Q4_K_M). Access is tested first; a cut is resumed; files are checked. What is here already
    is not fetched again. Obeys HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT.
    """
    from maestrale import logs
    from maestrale.engines.choose import EngineChoice, choose_engine
    from maestrale.models.catalog import find_model
    from maestrale.models.describe import describe
    from maestrale.models.file_selection import picked
    from maestrale.models.local import gguf_in, local_path, refuse_revision
    from maestrale.models.prepared import METADATA_FILE
    from maestrale.models.resolve import CPU_ENGINE, prepare, remote_source
    from maestrale.models.transfer import shown_bytes
    from maestrale.serve.progress import StartProgress

    settings = load_settings({"model": model, "revision": revision}, os.environ)
    logs.configure(settings.log_level, settings.log_format)
    # What is only fetched needs no engine: the files may be for another machine.
    named = EngineChoice(engine, "as --engine says")
    choice = named if engine != "auto" else choose_engine(engine, model)
    echo(choice.line, err=True)
    known = find_model(model)
    if known is not None and choice.name == CPU_ENGINE and known.package_file:
        refuse_revision(model, revision)
        echo(f"{known.name} comes with maestrale: there is nothing to fetch.")
        return
    path = None if known is not None else local_path(model)
    if path is not None:
        refuse_revision(model, revision)
        if not (path / METADATA_FILE).is_file():
            describe(model, hub_settings(os.environ))  # or say that it is no model
            found = gguf_in(path) if path.is_dir() and choice.name == CPU_ENGINE else None
            if found is not None and (said := picked(model, found)):
                echo(said)
        echo(f"{model} is on this machine: there is nothing to fetch.")
        return
    hub = hub_settings(os.environ)
    repo, variant = remote_source(model, known, choice.name)
    with StartProgress(lambda text: None) as progress:
        from maestrale.models.download import pull

        pulled = pull(
            repo,
            hub,
            progress.update,
            engine=choice.name,
            revision=settings.revision,
            variant=variant,
        )
        if pulled.kind == "gguf" and not no_convert:
            prepare(
                model,
                settings.cache_dir,
                progress.update,
                engine=choice.name,
                revision=settings.revision,
                hub=hub,
            )
    fetched = f"{shown_bytes(pulled.fetched)} fetched" if pulled.fetched else "nothing to fetch"
    echo(
        f"{repo} ({pulled.commit[:12]}): {len(pulled.names)} files, {shown_bytes(pulled.size)}; "
        f"{fetched}."
    )
    echo(str(pulled.snapshot))

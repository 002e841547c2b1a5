"""`maestrale serve`: its options are the fields of `Settings`; no option is written here twice."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from maestrale.config import settings as config
from maestrale.config.models import check_several, in_folder, load_models
from maestrale.config.reading import settings_files
from maestrale.serve.handover.program import VARIABLE, Program


class SettingOption(click.Option):
    """A flag made from one field of `Settings`.

    Values stay text: `load_settings` reads and checks them, from wherever they come.
    """

    def __init__(self, field: config.Field) -> None:
        kind = config.field_type(field.name)
        flag = config.flag(field.name)
        names = [f"{flag}/--no-{flag[2:]}" if takes_no(field) else flag, field.name]
        if kind is bool:
            super().__init__(names, is_flag=True, default=None, help=help_text(field))
        else:
            several = kind == tuple[str, ...]
            super().__init__(
                names,
                type=str,
                multiple=several,
                metavar=field.metadata["metavar"],
                help=help_text(field),
            )
        self.group: str = field.metadata["group"]
        self.two_ways = kind is bool and takes_no(field)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None or not self.two_ways:
            return record
        return f"--[no-]{self.opts[0][2:]}", record[1]


def takes_no(field: config.Field) -> bool:
    """Whether the flag also has a form with `--no-`: `--no-no-auth` would be silly."""
    return config.field_type(field.name) is bool and not field.name.startswith("no_")


def help_text(field: config.Field) -> str:
    """The help, with the default where it is not told in the text and not simply 'off'."""
    text: str = field.metadata["help"]
    choices = field.metadata["rules"].get("choices")
    if choices:
        text = f"{text} One of {', '.join(choices)}."
    default = shown_default(field)
    return text if default is None else f"{text} [{default}]"


def shown_default(field: config.Field) -> str | None:
    default = field.default
    if default in (None, ()) or default is dataclasses.MISSING:
        return None
    if isinstance(default, bool):
        return ("on" if default else "off") if takes_no(field) else None
    if field.metadata["rules"].get("size") and isinstance(default, int):
        return f"{default >> 20}MiB"
    return f"{default:g}" if isinstance(default, float) else str(default)


class ServeCommand(click.Command):
    """Shows its options in the sections of `Settings`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [option for option in self.params if isinstance(option, SettingOption)]
        for section, members in groupby(options, key=lambda option: option.group):
            self._write_section(section, list(members), ctx, formatter)
        others = [
            param
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and not isinstance(param, SettingOption)
        ]
        self._write_section("Other", others, ctx, formatter)

    @staticmethod
    def _write_section(
        title: str,
        params: Sequence[click.Option],
        ctx: click.Context,
        formatter: click.HelpFormatter,
    ) -> None:
        records = [record for param in params if (record := param.get_help_record(ctx))]
        with formatter.section(title):
            # Padded, so that the texts of all sections stand in one column.
            formatter.write_dl([(f"{flag:28}", text) for flag, text in records])


def serve(
    model_names: tuple[str, ...],
    config_file: Path | None,
    emit_kuberay: bool,
    image: str | None,
    **flags: Any,
) -> None:
    """Serve models as a chat API, by default the bundled one on http://127.0.0.1:8000.

    Several are loaded when requests ask for them by name. They are given as MODELs, as tables
    [[model]] in maestrale.toml, or as a folder (--models-dir).

    Each option is also a variable (MAESTRALE_MAX_MODEL_LEN) and a key under [serve] in
    maestrale.toml (max_model_len); a flag goes before a variable, and that before the file.

    On SIGHUP it reads certificates again; where the program or its settings were changed, a new
    server takes over from it, and no stream is lost.
    Options that take several values can be repeated, or given with commas.
    """
    if model_names and flags["model"] is not None:
        raise click.UsageError("Give the model once: as MODEL or with --model.")
    program = Program(os.environ)
    predecessors = None
    if VARIABLE in os.environ:
        from maestrale.serve.handover.predecessors import Predecessors

        predecessors = Predecessors.of_this_start(os.environ)
    settings, models = chosen_models(model_names, flags, os.environ, config_file)
    _say_files(settings, settings_files(os.environ, config_file))
    if emit_kuberay:
        if len(models) > 1:
            raise click.UsageError("--emit-kuberay is for one model.")
        settings = models[0]
        from maestrale import __version__
        from maestrale.serve import kuberay

        documents = kuberay.manifests(settings, image or f"maestrale:{__version__}")
        click.echo(kuberay.text(documents), nl=False)
        return
    if image is not None:
        raise click.UsageError("--image is for --emit-kuberay.")
    from maestrale.supervise.prespawn import begun_engine

    if predecessors is not None:
        predecessors.check(settings)
    program.settings(lambda: chosen_models(model_names, flags, os.environ, config_file))
    with begun_engine(likely_engine(models[0])):
        from maestrale.serve.server import run

        run(settings, models=models, program=program, predecessors=predecessors)


def chosen_models(
    names: Sequence[str],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Path | None,
) -> tuple[config.Settings, list[config.Settings]]:
    """The server's settings, and those of each of its models. Raises: SettingsError, ModelError."""
    settings, models = load_models(names, flags, environment, file)
    if settings.models_dir is not None:
        from maestrale.models.local import models_in

        models += in_folder(settings, models_in(settings.models_dir))
    check_several(settings, models)
    if len(models) == 1:
        settings = models[0]
    return settings, models


def _say_files(settings: config.Settings, files: Sequence[Path]) -> None:
    """What nobody gave on the command line may have come from a file: say from which."""
    from maestrale import logs

    logs.configure(settings.log_level, settings.log_format)
    for path in files:
        logs.LOGGER.info("Settings are read from %s.", path.absolute())


def likely_engine(settings: config.Settings) -> str | None:
    """The engine whose process can be begun before the model was looked at, if any."""
    if settings.replica_range is not None:  # Ray starts them
        return None
    if settings.engine == "auto":  # a GPU's is looked for later
        return None if Path("/proc/driver/nvidia").exists() else "cpu"
    return settings.engine if settings.engine == "cpu" else None


command = ServeCommand(
    "serve",
    callback=serve,
    help=serve.__doc__,
    params=[
        click.Argument(["model_names"], nargs=-1, metavar="[MODEL]..."),
        *(SettingOption(field) for field in config.fields().values()),
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Read this file instead of ./maestrale.toml and the user's own.",
        ),
        click.Option(
            ["--emit-kuberay"],
            is_flag=True,
            help="Don't serve: print the files that serve with these settings on Kubernetes, as "
            "KubeRay's RayService.",
        ),
        click.Option(["--image"], metavar="NAME", help="Image with the extra ray, for these."),
    ],
)

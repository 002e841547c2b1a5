"""`maestrale service`: let systemd keep maestrale running, hardened, from boot on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from maestrale.cli.echo import echo
from maestrale.config import settings as config
from maestrale.config.addresses import is_loopback
from maestrale.config.reading import load_settings
from maestrale.errors import ServiceError, SettingsError
from maestrale.keys import new_key
from maestrale.machine import service
from maestrale.machine.source import is_image
from maestrale.machine.unit import SECRETS, Container, Program, environment_file, unit

NAME = click.option("--name", default="maestrale", show_default=True, help="The service's name.")
INACTIVE = 3  # the exit code of `systemctl status` for a service that doesn't run


@click.group("service")
def command() -> None:
    """Let systemd keep maestrale running, from boot on."""


@command.command(
    "install",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
)
@NAME
@click.option("--container", "image", metavar="IMAGE", help="Run this image with Docker.")
@click.option("--gpus", is_flag=True, help="Let it use the NVIDIA GPUs.")
@click.option("--replace", is_flag=True, help="Write an existing service anew; its key stays.")
@click.option("--print", "only_print", is_flag=True, help="Show the unit, change nothing.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[SERVE OPTIONS]...")
def install(
    name: str,
    image: str | None,
    gpus: bool,
    replace: bool,
    only_print: bool,
    options: tuple[str, ...],
) -> None:
    """Write a systemd unit and start it.

    What follows are options of 'maestrale serve'. Without --container it runs this very
    installation. A key is made where the address asks for one, and is shown once; a given one,
    and HF_TOKEN of the environment, go into a file for root alone.
    """
    path = service.unit_path(name)
    settings, given = read_options(options)
    how = _how(settings, image, gpus, given)
    secrets = secrets_for(settings, image is not None, os.environ, service.kept_secrets(name))
    words = serve_words(settings, given, image is not None)
    text = unit(name, how, words, systemd=service.systemd_version())
    if only_print:
        click.echo(f"# {path}\n{text}", nl=False)
        return
    service.check_machine()
    service.check_name(name, replace)
    if isinstance(how, Container):
        service.check_container(how)
    else:
        service.check_program(how)
        _check_files(settings, given)
    service.install(name, text, secrets.values)
    echo(f"{path} is installed and started. Its log: journalctl -fu {name}")
    if secrets.made:
        echo(f"API key (shown this once; it is in {environment_file(name)}): {secrets.made}")
    service.check_start(name)


@command.command("uninstall")
@NAME
def uninstall(name: str) -> None:
    """Stop the service and remove it. Its models stay."""
    service.check_machine()
    left = service.uninstall(name)
    echo(f"The service {name} is removed.")
    for folder in left:
        echo(f"Left: {folder}")


@command.command("status")
@NAME
def status(name: str) -> int:
    """Show how the service does. Exit code 0: it runs; 3: it does not."""
    if not service.BOOTED.is_dir():
        service.check_machine()
    state = service.status(name)
    for key, value in state.items():
        echo(f"{key:16}{value}")
    echo(f"{'Unit':16}{service.unit_path(name)}")
    return 0 if state.get("ActiveState") == "active" else INACTIVE


@command.command(
    "print",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
)
@NAME
@click.option("--container", "image", metavar="IMAGE", help="Run this image with Docker.")
@click.option("--gpus", is_flag=True, help="Let it use the NVIDIA GPUs.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[SERVE OPTIONS]...")
def print_(name: str, image: str | None, gpus: bool, options: tuple[str, ...]) -> None:
    """Show the unit that 'install' would write."""
    service.unit_path(name)
    settings, given = read_options(options)
    how = _how(settings, image, gpus, given)
    words = serve_words(settings, given, image is not None)
    click.echo(unit(name, how, words, systemd=service.systemd_version()), nl=False)


class Secrets:
    """What goes into the environment file; `made` is the key that nobody gave."""

    def __init__(self, values: dict[str, str], made: str = "") -> None:
        self.values = values
        self.made = made


def read_options(options: tuple[str, ...]) -> tuple[config.Settings, dict[str, Any]]:
    """Settings, and which were given, of words as `maestrale serve` takes them.

    Raises: SettingsError, click.UsageError; here, and not when the service starts.
    """
    from maestrale.cli.serve import command as serve

    with serve.make_context("maestrale serve", list(options)) as context:
        flags = dict(context.params)
    names = flags.pop("model_names", ())
    for other in set(flags) - set(config.fields()):
        if flags.pop(other):
            flag = "--config" if other == "config_file" else config.flag(other)
            raise SettingsError(f"A service takes no {flag}: give the settings themselves.")
    if len(names) > 1:
        raise SettingsError(
            "A service takes one MODEL. For several put them, or links to them, in a folder, and "
            "give it --models-dir."
        )
    if names:
        if flags["model"] is not None:
            raise click.UsageError("Give the model once: as MODEL or with --model.")
        flags["model"] = names[0]
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    environment = {key: os.environ[key] for key in ("HOME", "XDG_CACHE_HOME") if key in os.environ}
    # Not the environment's settings, nor maestrale.toml: the service won't have them.
    return load_settings(given, environment, Path(os.devnull)), given


def serve_words(settings: config.Settings, given: Mapping[str, Any], container: bool) -> list[str]:
    """The options again, in one form, without secrets, and for a container without the address."""
    words: list[str] = []
    for name, field in config.fields().items():
        inside = container and name in ("host", "port")
        if name not in given or field.metadata["rules"].get("secret") or inside:
            continue
        value = getattr(settings, name)
        if isinstance(value, bool):
            words.append(config.flag(name) if value else f"--no-{config.flag(name)[2:]}")
            continue
        for one in value if isinstance(value, tuple) else (given[name],):
            words += [config.flag(name), _absolute(name, str(one))]
    return words


def secrets_for(
    settings: config.Settings,
    container: bool,
    environment: Mapping[str, str],
    kept: Mapping[str, str],
) -> Secrets:
    """The environment file's content: keys as given, as kept from before, or made."""
    values = {name: kept[name] for name in SECRETS if name in kept}
    if token := environment.get("HF_TOKEN", "").strip():
        values["HF_TOKEN"] = token
    if settings.no_auth:
        values.pop("MAESTRALE_API_KEY", None)
    elif settings.api_key:
        values["MAESTRALE_API_KEY"] = ",".join(settings.api_key)
    # In a container the server listens on all addresses, whatever Docker publishes.
    asks = container or not is_loopback(settings.host)
    if not asks or settings.no_auth or settings.key_file or "MAESTRALE_API_KEY" in values:
        return Secrets(values)
    key = new_key()
    return Secrets({**values, "MAESTRALE_API_KEY": key}, key)


def _how(
    settings: config.Settings, image: str | None, gpus: bool, given: Mapping[str, Any]
) -> Container | Program:
    if image is None:
        return Program.running(gpus=gpus, low_port=0 < settings.port < 1024)
    if not is_image(image):
        raise SettingsError(
            f"--container {image!r} is no image's name: those are as maestrale:0.1.0-cpu."
        )
    for name in given:
        if config.field_type(name) is Path:
            raise ServiceError(
                f"{config.flag(name)}: the container doesn't see this machine's files. Leave "
                "--container out, or see docs/guide/image.md (a volume, HTTPS by Caddy)."
            )
    if "model" in given and Path(settings.model).expanduser().exists():
        raise ServiceError(
            f"--model {settings.model}: the container doesn't see this machine's files. Name a "
            "model on the hub, or leave --container out."
        )
    host = settings.host if ":" not in settings.host else f"[{settings.host.strip('[]')}]"
    host = "127.0.0.1" if host == "localhost" else host
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Container(image=image, publish=f"{host}:{settings.port}", gpus=gpus, memory=memory)


def _check_files(settings: config.Settings, given: Mapping[str, Any]) -> None:
    for name in given:
        if name != "made_key_file" and config.field_type(name) is Path:
            path = Path(getattr(settings, name))
            service.check_readable(path.absolute(), "open it to others, or put it in /opt")


def _absolute(name: str, value: str) -> str:
    """Paths hold wherever the service runs."""
    is_path = config.field_type(name) is Path
    if is_path or (name == "model" and Path(value).expanduser().exists()):
        return str(Path(value).expanduser().absolute())
    return value

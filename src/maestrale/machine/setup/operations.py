"""The operations: each compares facts with what should be, and yields only what is missing."""

from __future__ import annotations

import io
from collections.abc import Generator, Sequence

from pyinfra.api.command import StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.facts.deb import DebPackages
from pyinfra.operations import files

from maestrale.machine.setup import scripts
from maestrale.machine.setup.machine_facts import (
    DockerRuntimes,
    FileText,
    KeyFingerprints,
    OtherSources,
    PackageFaults,
)
from maestrale.machine.setup.packages import PackageChoice, Repository

ShellCommands = Generator[StringCommand, None, None]


@operation()
def repair_packages() -> ShellCommands:
    """Finish what dpkg left half done."""
    if not host.get_fact(PackageFaults):
        host.noop("packages are whole")
        return
    yield from (StringCommand(each) for each in scripts.REPAIR)


@operation()
def text_file(path: str, text: str) -> ShellCommands:
    """A file with exactly this text."""
    now = host.get_fact(FileText, path=path)
    if now is not None and now.strip() == text.strip():
        host.noop(f"{path} is as it should be")
        return
    yield from files.put._inner(io.StringIO(text), path, mode="644", create_remote_dir=True)


@operation()
def repository_key(repository: Repository) -> ShellCommands:
    """The key of a repository that has one to be fetched."""
    found = host.get_fact(KeyFingerprints, path=repository.key_file)
    if found == [repository.fingerprint]:
        host.noop(f"{repository.key_file} is NVIDIA's")
        return
    yield StringCommand(scripts.fetch_key(repository))


@operation()
def repository_source(repository: Repository) -> ShellCommands:
    """A repository in apt's sources, unless another file there names it already.

    Two files that name one repository with two keys would stop apt altogether.
    """
    if host.get_fact(OtherSources, repository=repository):
        host.noop(f"{repository.uri} is there already")
        return
    yield from text_file._inner(repository.source_file, repository.source)


@operation()
def package_lists(
    names: Sequence[str], choices: Sequence[PackageChoice], repositories: Sequence[Repository]
) -> ShellCommands:
    """Newest lists of packages, where a package is missing."""
    names, choices = missing(names, choices)
    if not (names or choices):
        host.noop("no list is needed")
        return
    yield StringCommand(scripts.refresh(repositories))


@operation()
def packages(names: Sequence[str], choices: Sequence[PackageChoice] = ()) -> ShellCommands:
    """These packages, and one set of each choice."""
    names, choices = missing(names, choices)
    if not names and not choices:
        host.noop("all are installed")
        return
    yield StringCommand(scripts.install(names, choices))


def missing(
    names: Sequence[str], choices: Sequence[PackageChoice]
) -> tuple[Sequence[str], Sequence[PackageChoice]]:
    """Of these, what is not installed whole."""
    installed = host.get_fact(DebPackages)
    absent = [name for name in names if name not in installed]
    open_choices = [
        choice
        for choice in choices
        if not any(all(name in installed for name in one) for one in choice.sets)
    ]
    return absent, open_choices


@operation()
def docker_runtime(systemd: bool) -> ShellCommands:
    """NVIDIA's runtime in Docker's settings. Docker looks for it only when it starts."""
    if "nvidia" in host.get_fact(DockerRuntimes):
        host.noop("Docker knows NVIDIA's runtime")
        return
    yield StringCommand(scripts.RUNTIME)
    if systemd:
        yield StringCommand("systemctl restart docker")

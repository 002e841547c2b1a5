"""pyinfra facts that set-up's operations look at, beyond pyinfra's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from maestrale.machine.setup.packages import Repository


class PackageFaults(FactBase[list[str]]):
    """What dpkg and apt call half done or missing: lines for a person; empty when all is well."""

    default = list

    def command(self) -> str:
        return (
            "{ dpkg --audit; ls /var/lib/dpkg/updates; "
            "apt-get -o Debug::NoLocking=1 check -qq; } 2>&1 || true"
        )

    def process(self, output: Iterable[str]) -> list[str]:
        return [line.strip() for line in output if line.strip()]


class FileText(FactBase[str]):
    """A file's text; None when it is not there."""

    def command(self, path: str) -> StringCommand:
        quoted = QuoteString(path)
        return StringCommand("if", "[", "-f", quoted, "];", "then", "cat", quoted, "&& echo; fi")

    def process(self, output: Iterable[str]) -> str:
        return "\n".join(output)


class KeyFingerprints(FactBase[list[str]]):
    """The fingerprints of the primary keys in a file; empty without the file or gpg."""

    default = list

    def command(self, path: str) -> StringCommand:
        home = "gnupg=$(mktemp -d);"
        show = "gpg --homedir $gnupg --batch --show-keys --with-colons"
        quoted = QuoteString(path)
        return StringCommand(home, show, quoted, "2>/dev/null;", "rm -rf $gnupg")

    def process(self, output: Iterable[str]) -> list[str]:
        found, primary = [], False
        for line in output:
            fields = line.split(":")
            if fields[0] in ("pub", "sub"):
                primary = fields[0] == "pub"
            elif fields[0] == "fpr" and primary:
                found.append(fields[9])
                primary = False
        return found


class OtherSources(FactBase[list[str]]):
    """The files of apt's sources that name a repository, but for the one that we write."""

    default = list

    def command(self, repository: Repository) -> StringCommand:
        where = re.split("[$]", repository.uri)[0].rstrip("/")
        mine = repository.source_file.rpartition("/")[2]
        return StringCommand(
            f"grep -rlF --include=*.list --include=*.sources --exclude={mine}",
            QuoteString(where),
            "/etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null || true",
        )

    def process(self, output: Iterable[str]) -> list[str]:
        return [line for line in output if line]


class DockerRuntimes(FactBase[list[str]]):
    """The runtimes that /etc/docker/daemon.json names."""

    default = list

    def command(self) -> str:
        return "cat /etc/docker/daemon.json 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> list[str]:
        text = "\n".join(output).strip()
        try:
            document = json.loads(text) if text else {}
        except ValueError:
            return []
        runtimes = document.get("runtimes") if isinstance(document, dict) else None
        return sorted(runtimes) if isinstance(runtimes, dict) else []

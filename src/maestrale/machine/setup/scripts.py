"""Pieces of POSIX sh that the operations run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from maestrale.machine.setup.packages import KEY_FOLDER, PackageChoice, Repository

# Nobody is there to answer; what the administrator changed in a file of a package stays. Retries
# without pauses: with them apt 2.6 never ends when one repository refuses and another answers.
APT = (
    "env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 LC_ALL=C apt-get -y "
    "-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "
    "-o DPkg::Lock::Timeout=120 -o Acquire::Retries=2 -o Acquire::Retries::Delay=false "
    "-o Acquire::http::Timeout=20"
)
REPAIR = ("env DEBIAN_FRONTEND=noninteractive LC_ALL=C dpkg --force-confdef --force-confold "
          "--configure -a", f"{APT} -f install")  # fmt: skip
RUNTIME = "nvidia-ctk runtime configure --runtime=docker"
# Words that failures.py looks for.
KEY_UNREACHABLE = "maestrale: key unreachable"
KEY_WRONG = "maestrale: wrong key"
UNTRUSTED = (
    "GPG error|is not signed|NO_PUBKEY|EXPKEYSIG|BADSIG|signatures? (was|were) (invalid|not)"
)
PRIMARY_FINGERPRINTS = '$1 ~ /^(pub|sub)$/ {p = $1} $1 == "fpr" && p == "pub" {print $10; p = ""}'
NO_PACKAGE = "maestrale: no package"


def refresh(repositories: Sequence[Repository]) -> str:
    """apt-get update that also fails where one of ours couldn't be read or checked.

    By itself it ends well then, and goes on with lists from before.
    """
    script = f'said=$({APT} update 2>&1); rc=$?; printf "%s\\n" "$said"'
    for each in repositories:
        where = shlex.quote(re.split("[$]", each.uri)[0].rstrip("/"))
        file = shlex.quote(each.source_file)
        # What can't be trusted is taken out again: it would spoil every later update.
        script += (
            f'; if printf "%s\\n" "$said" | grep -E "^(W|E|Err)" | grep -qF {where}; then rc=100; '
            f'printf "%s" "$said" | grep -qE {shlex.quote(UNTRUSTED)} && rm -f {file}; fi'
        )
    return f"{script}; exit $rc"


def install(names: Sequence[str], choices: Sequence[PackageChoice] = ()) -> str:
    """apt-get install of all names, and of the first set of each choice that apt can install."""
    words = " ".join(shlex.quote(name) for name in names)
    script = f"set -- {words}"
    for choice in choices:
        tried = " ".join(shlex.quote(" ".join(each)) for each in choice.sets)
        first = shlex.quote(" ".join(choice.sets[0]))
        script += (
            "; chosen="
            f'; for one in {tried}; do if {APT} -s -qq install --no-install-recommends "$@" $one '
            ">/dev/null 2>&1; then chosen=$one; break; fi; done"
            # Where none can be, the first one's failure tells most.
            f'; [ -n "$chosen" ] || {{ echo "{NO_PACKAGE}"; chosen={first}; }}'
            '; set -- "$@" $chosen'
        )
    return f'{script}; {APT} install --no-install-recommends "$@"'


# Keeps what `url` gives as `file` only if it is one key, with our fingerprint; in its own shell.
FETCH_KEY = (
    "umask 022; new=$(mktemp -d) && trap 'rm -rf \"$new\"' EXIT; "
    'curl -fsSL --retry 2 --connect-timeout 15 -o "$new/key" "$url" || '
    f'{{ echo "{KEY_UNREACHABLE}: $url" >&2; exit 1; }}; '
    'found=$(gpg --homedir "$new" --batch --show-keys --with-colons "$new/key" 2>/dev/null | '
    f"awk -F: {shlex.quote(PRIMARY_FINGERPRINTS)}); "
    f'[ "$found" = "$fingerprint" ] || {{ echo "{KEY_WRONG}: $found" >&2; exit 1; }}; '
    f'mkdir -p {KEY_FOLDER} && cp "$new/key" "$file" && chmod 644 "$file"'
)


def fetch_key(repository: Repository) -> str:
    """Fetch the key, and keep it only if it is the one key with our fingerprint."""
    url, file = shlex.quote(repository.key_url), shlex.quote(repository.key_file)
    return f"url={url}; file={file}; fingerprint={repository.fingerprint}; {FETCH_KEY}"

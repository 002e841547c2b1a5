"""User-data for cloud-init: a machine's first boot installs maestrale and runs its set-up.

The machine installs from an address, as user-data is too small to carry a wheel: a public git
repository, or the package index. All else, also going on after a reboot, is `maestrale setup`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import textwrap
from pathlib import Path

from maestrale.errors import SettingsError
from maestrale.machine.setup.plan import SetupOptions
from maestrale.machine.source import Source, installed_from, split_reference

SCRIPT_FILE = "/usr/local/sbin/maestrale-first-boot"
UNIT = "maestrale-first-boot"
KEY_FILE = "/usr/local/share/maestrale/nvidia-mirror.asc"
LARGEST = 16384  # bytes: the bound of the strictest large cloud (AWS)
# New machines update themselves after their start.
APT_SECONDS = 1800
_PUBLIC = re.compile(r"https://[^@\s]+")  # an address without a user or a password in it


def user_data(options: SetupOptions, source: str | None) -> str:
    """The text for a cloud's field "user data". Raises: SettingsError, SourceError."""
    program, image = _program(source)
    script = _SCRIPT.format(get=_get(program), setup=shlex.join(_setup(options, image)))
    files = _file(SCRIPT_FILE, "0755", script)
    if options.nvidia_key:
        files += _file(KEY_FILE, "0644", options.nvidia_key)
    text = (
        "#cloud-config\n"
        "# Written by maestrale setup --cloud-init: at its first boot the machine installs\n"
        "# maestrale, which sets it up, with a reboot where the driver needs one, and serves.\n"
        "# How it goes: journalctl -u 'maestrale-*'. Holds no secret.\n"
        f"write_files:\n{files}"
        "runcmd:\n"
        f"  - [systemd-run, --wait, --unit, {UNIT}, {SCRIPT_FILE}]\n"
    )
    if len(text.encode()) > LARGEST:
        raise SettingsError(
            f"The user-data has {len(text.encode())} bytes; clouds take {LARGEST}. Is the key of "
            "--nvidia-key only one?"
        )
    return text


def _file(path: str, mode: str, content: str) -> str:
    body = textwrap.indent(content.rstrip("\n") + "\n", "      ", lambda line: bool(line.strip()))
    return f"  - path: {path}\n    permissions: '{mode}'\n    content: |\n{body}"


def _program(source: str | None) -> tuple[Source, str]:
    """What the machine installs maestrale from, and the image that it serves, if one was given.

    Raises: SettingsError where no other machine could fetch it; SourceError.
    """
    found = Source.parse(source)
    image = found.value if found.kind == "image" else ""
    if image:
        found = installed_from()
    if found.kind == "checkout" and (image or source is None):
        found = _origin(Path(found.value)) or found
    if found.kind in ("checkout", "wheel"):
        what = f"{found.value} lies on this machine" + (
            "" if source and not image else ", and has no public address"
        )
        raise SettingsError(
            f"At its first boot the machine installs maestrale, but {what}, and user-data is too "
            "small to carry it. Give --source a git URL or ==VERSION. Or start the machine, then "
            "'maestrale setup user@host --service --source ...'."
        )
    return found, image


def _origin(checkout: Path) -> Source | None:
    """The public https address of a checkout's commit; None where it has none."""
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout)]
    words = (["remote", "get-url", "origin"], ["rev-parse", "HEAD"])
    try:
        said = [
            subprocess.run([*git, *each], capture_output=True, text=True, timeout=10).stdout.strip()  # noqa: S603
            for each in words
        ]
    except (OSError, subprocess.TimeoutExpired):
        return None
    address, commit = said
    # An address with a password in it is not for user-data.
    if not (_PUBLIC.fullmatch(address) and commit):
        return None
    return Source("git", f"git+{address}@{commit}")


def _get(program: Source) -> str:
    """The commands that fetch maestrale into /opt/maestrale. Raises: SettingsError."""
    if program.kind == "published":
        return _FROM_INDEX.format(wanted=shlex.quote(f"maestrale[machine]=={program.value}"))
    address, reference = split_reference(program.value.removeprefix("git+"))
    if not _PUBLIC.fullmatch(address):
        raise SettingsError(
            "--source: a machine that starts has no key and no password, and user-data should "
            "hold none, so it can clone from a public address only: "
            "git+https://HOST/PATH.git@REF."
        )
    checkout = f"git -C $new checkout --quiet {shlex.quote(reference)} -- && " if reference else ""
    return _FROM_GIT.format(address=shlex.quote(address), checkout=checkout)


def _setup(options: SetupOptions, image: str) -> list[str]:
    words = ["maestrale", "setup", "--reboot", "--service", "--wait-for-apt", str(APT_SECONDS)]
    if image:
        words += ["--source", image]
    if options.cpu:
        words.append("--cpu")
    if options.nvidia_repository:
        words += ["--nvidia-repository", options.nvidia_repository, "--nvidia-key", KEY_FILE]
    return words


_SCRIPT = """\
#!/bin/sh
# Written by maestrale setup --cloud-init. Can be run again; arguments go to the set-up.
set -u
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND=noninteractive
# Networks come up late, and other programs install packages soon after a start.
retry() {{
    for seconds in 5 20 60 120 ''; do
        "$@" && return
        [ -z "$seconds" ] || sleep "$seconds"
    done
    echo "maestrale: this failed: $*"
    exit 1
}}
apt() {{ apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"; }}
retry apt update
retry apt install --no-install-recommends ca-certificates git python3-venv
{get}
retry maestrale --version
exec {setup} "$@"
"""

# Its launcher makes the environment, with a newer Python where this one is too old.
_FROM_GIT = """\
new=/opt/maestrale.new
get() {{
    rm -rf $new
    git clone --quiet {address} $new && {checkout}mv $new /opt/maestrale
}}
[ -e /opt/maestrale ] || retry get
ln -sf /opt/maestrale/maestrale /usr/local/bin/maestrale"""

# uv brings a newer Python where this one is too old; pip fetches the wheel that the image has.
_FROM_INDEX = """\
get() {{
    python3 -m venv /opt/maestrale && /opt/maestrale/bin/pip install --quiet uv &&
        UV_PYTHON_INSTALL_DIR=/opt/maestrale/python UV_TOOL_DIR=/opt/maestrale/tools \\
            UV_TOOL_BIN_DIR=/usr/local/bin /opt/maestrale/bin/uv tool install --quiet \\
            --python '>=3.11,<3.15' --with pip {wanted}
}}
[ -e /usr/local/bin/maestrale ] || retry get"""

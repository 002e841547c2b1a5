"""User-data for cloud-init: the same set-up at a machine's first boot, with no one logged in.

One shell script from the same packages, repositories and pieces of shell as the operations, and
a systemd unit that runs it, again after a reboot where the driver needs one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import textwrap
from pathlib import Path

from maestrale.errors import SettingsError
from maestrale.machine import pci, requirements
from maestrale.machine.setup import packages as known
from maestrale.machine.setup import scripts
from maestrale.machine.setup.packages import Choice, Recipe, Repository
from maestrale.machine.setup.plan import SetupOptions
from maestrale.machine.source import Source, split_reference
from maestrale.machine.unit import Container, unit

SCRIPT_FILE = "/usr/local/sbin/maestrale-first-boot"
UNIT_NAME = "maestrale-first-boot.service"
SERVICE = "maestrale"
LARGEST = 16384  # bytes: the bound of the strictest large cloud (AWS)
_GPU_OPTIONS = " --gpus all --ipc host"
# What only the machine knows; the shell puts it in.
_KERNEL, _FLAVOUR, _IMAGE = "@KERNEL@", "@FLAVOUR@", "@IMAGE@"
_CUDA = "@CUDA@"  # the folder of the architecture, in NVIDIA's repositories
_PUBLIC = re.compile(r"https://[^@\s]+")  # an address without a user or a password in it


def user_data(options: SetupOptions, source: str | None) -> str:
    """The text for a cloud's field "user data". Raises: SettingsError, SourceError."""
    image, notes = _image_script(source)
    script = _script(options, image)
    files = [
        _file(SCRIPT_FILE, "0755", script),
        _file(f"/etc/systemd/system/{UNIT_NAME}", "0644", _UNIT),
    ]
    if image:
        service = unit(SERVICE, Container(image=_IMAGE, gpus=True), systemd=249)
        files.append(_file(f"/usr/local/lib/maestrale/{SERVICE}.service", "0644", service))
    if options.nvidia_key:
        mirror = known.mirror(options.nvidia_repository, options.nvidia_key)
        files.append(_file(mirror.key_file, "0644", options.nvidia_key))
    comments = "".join(f"# {line}\n" for note in notes for line in textwrap.wrap(note, 90))
    text = (
        "#cloud-config\n"
        "# Written by maestrale setup --cloud-init. Sets the machine up at its first boot, with a\n"
        "# reboot where the driver needs one; 'journalctl -u maestrale-first-boot' tells how it\n"
        f"# went. Holds no secret.\n{comments}"
        f"write_files:\n{''.join(files)}"
        "runcmd:\n"
        "  - [systemctl, daemon-reload]\n"
        f"  - [systemctl, enable, {UNIT_NAME}]\n"
        f"  - [systemctl, start, {UNIT_NAME}]\n"
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


def _image_script(source: str | None) -> tuple[str, list[str]]:
    """Shell that sets `image`, empty where there is no source that a machine can fetch; notes."""
    found = Source.parse(source)
    if found.kind == "checkout" and source is None:
        origin = _origin(Path(found.value))
        if not origin:
            return "", [
                "This checkout has no public address, and --source names none, so the machine is "
                "set up and no service started. With --source (a git URL, an image with its tag, "
                "==VERSION) it serves as well."
            ]
        found = Source("git", origin)
    if found.kind in ("checkout", "wheel"):
        raise SettingsError(
            f"--source {found.value} lies on this machine, and user-data is too small to carry "
            "it. For --cloud-init: a git URL, an image with its tag, or ==VERSION. Or start the "
            "machine, then 'maestrale setup user@host --source ...'."
        )
    if found.kind == "image":
        return f"image={shlex.quote(found.value)}\ndocker pull --quiet $image || exit 1\n", []
    if found.kind == "git":
        address, reference = split_reference(found.value.removeprefix("git+"))
        if not _PUBLIC.fullmatch(address):
            raise SettingsError(
                "--source: a machine that starts has no key and no password, and user-data should "
                "hold none, so it can clone from a public address only: "
                "git+https://HOST/PATH.git@REF."
            )
        get = f"git clone --quiet {shlex.quote(address)} /src"
        if reference:
            get += f" && git -C /src checkout --quiet {shlex.quote(reference)} --"
        stage = "PYTHONPATH=/src/src python3 -c 'STAGE' /src"
    else:
        version = shlex.quote(f"maestrale=={found.value}")
        get = f"python3 -m pip download -q --no-deps -d /src {version}"
        stage = "set -- /src/*.whl; PYTHONPATH=$1 python3 -c 'STAGE' $1"
    stage = stage.replace("STAGE", _STAGE)
    inside = (
        "apt-get -q update && apt-get -q install -y --no-install-recommends "
        f"ca-certificates git python3-pip && {get} && {stage}"
    )
    return _BUILD.replace("INSIDE", shlex.quote(inside)), []


def _origin(checkout: Path) -> str:
    """The https address of a checkout's commit, empty where it has none."""
    if not (checkout / ".git").exists():
        return ""
    git = ["git", "-C", str(checkout)]
    words = (["remote", "get-url", "origin"], ["rev-parse", "HEAD"])
    try:
        said = [
            subprocess.run([*git, *each], capture_output=True, text=True, timeout=10).stdout.strip()  # noqa: S603
            for each in words
        ]
    except (OSError, subprocess.TimeoutExpired):
        return ""
    address, commit = said
    # An address with a password in it is not for user-data.
    return f"git+{address}@{commit}" if _PUBLIC.fullmatch(address) and commit else ""


def _script(options: SetupOptions, image: str) -> str:
    cases = "".join(
        f'"{identity} {version}") flavour_of={identity}; recipe_{identity} ;;\n'
        for identity, version in known.RECIPES
    )
    series = "".join(
        f"{version}) case $kernel in {each}*) ;; *) hwe=-hwe-{version} ;; esac ;;\n"
        for version, each in known.UBUNTU_KERNELS.items()
    )
    text = (
        _HEAD.replace("TOO_OLD", _too_old())
        .replace("SERIES\n", series)
        .replace("WANTS_GPU", "" if not options.cpu else "gpu=")
        + _recipe("ubuntu", known.UBUNTU, options)
        + _recipe("debian", known.DEBIAN, options)
        + _INSTALL.replace("CASES\n", cases)
        .replace("REPAIR", " && ".join(scripts.REPAIR))
        .replace("REFRESH_ALL", shlex.quote(scripts.refresh(())))
        .replace("DOCKER", shlex.quote(scripts.install(known.DOCKER_PACKAGES)))
        .replace("RUNTIME", scripts.RUNTIME)
        + (_SERVE.replace("IMAGE_SCRIPT\n", image) if image else "")
        + "systemctl disable --quiet maestrale-first-boot.service 2>/dev/null\nlog ready\n"
    )
    # The same words in each command: once is enough.
    text = text.replace(scripts.APT, "$APT").replace("APT_COMMAND", shlex.quote(scripts.APT))
    architectures = " ".join(
        f"{one}) cuda={two} ;;" for one, two in known.CUDA_ARCHITECTURES.items()
    )
    return text.replace("ARCHITECTURES", architectures).replace("FETCH_KEY", scripts.FETCH_KEY)


def _recipe(name: str, recipe: Recipe, options: SetupOptions) -> str:
    """A shell function that adds the repositories and installs driver and toolkit."""
    words = {
        "branch": str(requirements.DRIVER_BRANCH),
        "kernel": _KERNEL,
        "flavour": _FLAVOUR,
    }
    if options.nvidia_repository:
        mirror = known.mirror(options.nvidia_repository, options.nvidia_key)
        parts = [_add(mirror)]
        every: tuple[Repository, ...] = (mirror,)
        tools: tuple[str, ...] = ("ca-certificates",)
    else:
        tools = known.KEY_TOOLS
        toolkit = known.toolkit_repository()
        every = (toolkit,)
        parts = [_add(toolkit)]
        if recipe.cuda_repository:
            cuda = known.cuda_repository(recipe.cuda_repository, _CUDA)
            every = (*every, cuda)
            parts += [_write(known.CONTRIB_FILE, known.CONTRIB), _add(cuda)]
    if recipe.cuda_repository:
        parts.append(_write(known.PREFERENCES_FILE, known.PREFERENCES))
    modules = Choice(tuple(tuple(n.format(**words) for n in one) for one in recipe.modules.sets))
    user_space = tuple(each.format(**words) for each in recipe.user_space)
    own = recipe.modules.sets[-1]
    bare = Choice((tuple(n.format(**words) for n in own if "{k" not in n and "{f" not in n),))
    lines = [
        f'retry sh -c {shlex.quote(scripts.install(tools))} || fail "packages can\'t be installed"',
        *parts,
        f'retry sh -c {shlex.quote(scripts.refresh(every))} || fail "a repository can\'t be used"',
        f"with_kernel {shlex.quote(scripts.install(user_space, (modules,)))} "
        f"{shlex.quote(scripts.install(user_space, (bare,)))}",
        f"retry sh -c {shlex.quote(scripts.install(known.TOOLKIT_PACKAGES))} || fail toolkit",
    ]
    if not recipe.signed_modules:
        lines.insert(0, "no_secure_boot")
    return f"recipe_{name}() {{\n" + "\n".join(lines) + "\n}\n"


def _add(repository: Repository) -> str:
    source = _write(repository.source_file, repository.source)
    if repository.key_text:
        return source
    words = f"{repository.key_url} {repository.key_file} {repository.fingerprint}"
    return f'retry fetch_key {words} || fail "no key"\n{source}'


def _write(path: str, text: str) -> str:
    return f"put {path} {shlex.quote(text.rstrip())}"


def _too_old() -> str:
    """Tests in shell: device numbers of GPUs before the oldest that will do."""
    ranges = [
        f"[ $((device)) -ge {start} ] && [ $((device)) -le {end} ]"
        for start, end, _, capability in pci._RANGES
        if capability < requirements.MIN_COMPUTE_CAPABILITY
    ]
    return " || ".join(f"{{ {each}; }}" for each in ranges)


_UNIT = f"""\
[Unit]
Description=maestrale sets this machine up
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={SCRIPT_FILE}
TimeoutStartSec=2h

[Install]
WantedBy=multi-user.target
"""

_HEAD = """\
#!/bin/sh
# Written by maestrale setup --cloud-init: driver, Docker, container toolkit, each only where it
# is missing. Can be run again.
set -u
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH
APT=APT_COMMAND
export APT
log() { echo "maestrale: $*"; }
fail() { log "$*"; exit 1; }
# Other programs install packages soon after a start, and networks come up late.
retry() {
    for try in 1 2 3 4 5; do
        "$@" && return
        [ "$try" = 5 ] || sleep "${RETRY_SECONDS:-20}"
    done
    return 1
}
put() { printf '%s\\n' "$2" | sed "s/@CUDA@/$cuda/" > "$1"; }
fetch_key() (
    url=$(echo "$1" | sed "s/@CUDA@/$cuda/")
    file=$2
    fingerprint=$3
    FETCH_KEY
)
with_kernel() {
    wanted=$1
    if [ -z "$flavour" ]; then wanted=$2; fi
    wanted=$(printf %s "$wanted" | sed "s/@KERNEL@/$kernel/g; s/@FLAVOUR@/$flavour/g")
    retry sh -c "$wanted" || fail "the driver can't be installed"
}
no_secure_boot() {
    for variable in /sys/firmware/efi/efivars/SecureBoot-*; do
        [ -r "$variable" ] || continue
        [ "$(od -An -t u1 "$variable" | awk '{print $NF}')" != 1 ] ||
            fail "secure boot is on: the driver's module would be refused"
    done
}
. /etc/os-release
kernel=$(uname -r)
cuda=
case $(uname -m) in ARCHITECTURES esac
gpu=
for folder in /sys/bus/pci/devices/*; do
    [ "$(cat "$folder/vendor" 2>/dev/null)" = 0x10de ] || continue
    case $(cat "$folder/class") in 0x03*) ;; *) continue ;; esac
    device=$(cat "$folder/device")
    if TOO_OLD; then log "the GPU $device is too old"; continue; fi
    gpu=yes
done
WANTS_GPU
hwe=
case $VERSION_ID in
SERIES
esac
flavour=
case $kernel in
    *-*-*) flavour=${kernel#*-}; flavour=${flavour#*-} ;;
esac
case $ID$flavour in
    ubuntugeneric | ubuntulowlatency) flavour=$flavour$hwe ;;
    debian*amd64 | debian*arm64) ;;
    debian*) flavour= ;;
esac
"""

_INSTALL = """\
log "$PRETTY_NAME, kernel $kernel, ${gpu:-no} GPU"
{ dpkg --audit; ls /var/lib/dpkg/updates; } | grep -q . && { REPAIR; }
retry sh -c REFRESH_ALL || fail "no package repository can be reached"
command -v docker >/dev/null || retry sh -c DOCKER || fail "Docker can't be installed"
if [ -n "$gpu" ]; then
    case "$ID $VERSION_ID" in
CASES
        *) fail "$PRETTY_NAME is none that this script knows" ;;
    esac
    RUNTIME
    if [ -d /run/systemd/system ]; then systemctl restart docker; fi
    if ! nvidia-smi >/dev/null 2>&1; then modprobe nvidia && modprobe nvidia_uvm; fi 2>/dev/null
    if ! nvidia-smi >/dev/null 2>&1; then
        if [ -e /var/lib/maestrale-rebooted ]; then fail "the driver doesn't work"; fi
        if [ -d /run/systemd/system ]; then
            log "rebooting for the driver"
            touch /var/lib/maestrale-rebooted
            systemctl reboot
        fi
        exit 0
    fi
fi
"""

_SERVE = f"""\
IMAGE_SCRIPT
unit=$(sed "s|{_IMAGE}|$image|" /usr/local/lib/maestrale/{SERVICE}.service)
[ -n "$gpu" ] || unit=$(printf '%s\\n' "$unit" | sed 's/{_GPU_OPTIONS}//')
printf '%s\\n' "$unit" > /etc/systemd/system/{SERVICE}.service
systemctl daemon-reload
systemctl enable --quiet --now {SERVICE} || fail "the service doesn't start"
"""

# Runs in a container, so that the machine needs neither git nor Python. Sets `image`.
_BUILD = """\
kind=cpu
[ -z "$gpu" ] || kind=cuda
image=maestrale:first-boot-$kind
context=$(mktemp -d /var/tmp/maestrale-XXXXXX)
trap 'rm -rf "$context"' EXIT
docker run --rm -v "$context:/context" debian:12.12-slim sh -c INSIDE || fail "can't be fetched"
DOCKER_BUILDKIT=1 docker build --quiet --target $kind --tag $image "$context" || exit 1
"""
_STAGE = (
    "import sys; from pathlib import Path; from maestrale.machine.source import Source; "
    'Source.parse(sys.argv[1]).stage(Path("/context"))'
)

"""The text of a systemd unit that keeps maestrale running: as a container, or from a venv.

    unit("maestrale", Container(image="maestrale:0.1.0-cuda", gpus=True), ["--model", "M"])
    unit("maestrale", Program.running(), ["--max-num-seqs", "8"])

What the service must not reach, it can't: the disk but its own two folders, other processes,
devices, kernel settings, new privileges. Secrets are never in the unit, which everyone may read,
but in an environment file for root alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maestrale.errors import ServiceError

ENVIRONMENT_FOLDER = "/etc/maestrale"
# What the environment file may hold, by name; a container gets these passed on.
SECRETS = ("MAESTRALE_API_KEY", "HF_TOKEN")
GRACE = 30  # seconds for answers in flight
CONTAINER_PORT = 8000
# The first systemd whose pauses between restarts can grow.
GROWING_PAUSES = 254
DATA = "/data"  # the image's volume
MOST_SOCKETS = 256  # of the port: one for each API worker
MOST_TASKS = 4096  # processes and threads
MEMORY_SHARE = 90  # per cent of the machine's memory


@dataclass(frozen=True, kw_only=True)
class Container:
    """The image in Docker. `publish`: the address and port of the machine to listen on.

    `memory`: bytes that the machine has, of which it may take its share; 0: not known, no bound.
    """

    image: str
    publish: str = "127.0.0.1:8000"
    gpus: bool = False
    memory: int = 0
    docker: str = "/usr/bin/docker"


@dataclass(frozen=True, kw_only=True)
class Program:
    """An installation of maestrale. `paths` is its PYTHONPATH, empty for an installed one."""

    python: str
    paths: str = ""
    bytecode: str = ""
    gpus: bool = False
    low_port: bool = False  # it listens below 1024

    @classmethod
    def running(cls, *, gpus: bool = False, low_port: bool = False) -> Program:
        """The installation that this process runs from."""
        package = Path(__file__).resolve().parents[1]
        installed = package.parent.name in ("site-packages", "dist-packages")
        return cls(
            python=sys.executable,
            paths="" if installed else str(package.parent),
            bytecode=sys.pycache_prefix or "",
            gpus=gpus,
            low_port=low_port,
        )


def unit(
    name: str,
    how: Container | Program,
    options: Sequence[str] = (),
    *,
    systemd: int = 252,
) -> str:
    """The unit `name`.service; `options` are those of `maestrale serve`, without secrets.

    `systemd` is the version that is to read it. Raises: ServiceError for an unusable word.
    """
    service = _container(name, how, options) if isinstance(how, Container) else None
    service = service or _program(name, how, options)  # type: ignore[arg-type]
    docker = isinstance(how, Container)
    sections = {
        "Unit": [
            f"Description=maestrale, a chat API ({name})",
            "Wants=network-online.target",
            "After=network-online.target" + (" docker.service" if docker else ""),
            *(["Requires=docker.service"] if docker else []),
            "StartLimitIntervalSec=900",
            "StartLimitBurst=30",
        ],
        "Service": [
            "Type=exec",
            f"EnvironmentFile=-{environment_file(name)}",
            *service,
            f"TimeoutStopSec={GRACE + 30}",
            "# A wrong setting (exit code 2) stays wrong; all else is tried again.",
            "Restart=on-failure",
            "RestartPreventExitStatus=2",
            *_pauses(systemd),
            *_HARDENED,
        ],
        "Install": ["WantedBy=multi-user.target"],
    }
    text = "\n\n".join(f"[{title}]\n" + "\n".join(lines) for title, lines in sections.items())
    return text + "\n"


def environment_file(name: str) -> str:
    """Where the secrets of the service `name` lie, with mode 0600."""
    return f"{ENVIRONMENT_FOLDER}/{name}.env"


def environment_text(values: Mapping[str, str]) -> str:
    """An EnvironmentFile. Raises: ServiceError for a value that can't stand in one."""
    lines = []
    for name, value in values.items():
        if not value.isprintable():
            raise ServiceError(f"{name} has a sign that can't be printed.")
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        quoted = quoted.replace("$", "\\$").replace("`", "\\`")
        lines.append(f'{name}="{quoted}"\n')
    return "".join(lines)


def quote(word: str) -> str:
    """One word of an Exec line. Raises: ServiceError when it can't be one."""
    if not word.isprintable():
        raise ServiceError(f"{word!r} has a sign that no line of a unit can have.")
    word = word.replace("%", "%%").replace("$", "$$")
    if word and not set(word) & set(" '\"\\;"):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _literal(text: str) -> str:
    """`text` between the quotes of an Environment line."""
    return text.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')


def _line(words: Sequence[str]) -> str:
    return " ".join(quote(word) for word in words)


def _container(name: str, how: Container, options: Sequence[str]) -> list[str]:
    run = [how.docker, "run", "--rm", "--name", name]
    run += ["--publish", f"{how.publish}:{CONTAINER_PORT}", "--volume", f"{name}:{DATA}"]
    run += ["--read-only", "--tmpfs", "/tmp:exec"]  # noqa: S108
    run += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    run += ["--pids-limit", str(MOST_TASKS)]
    if how.memory:
        run += ["--memory", str(how.memory * MEMORY_SHARE // 100)]
    run += ["--env", f"MAESTRALE_GRACE={GRACE}"]
    for secret in SECRETS:  # by name only: the value comes from this process's environment
        run += ["--env", secret]
    if how.gpus:
        run += ["--gpus", "all", "--ipc", "host"]
    return [
        f"ExecStartPre=-{_line([how.docker, 'rm', '--force', name])}",
        f"ExecStart={_line([*run, how.image, *options])}",
        f"ExecStop={_line([how.docker, 'stop', '--time', str(GRACE + 5), name])}",
        "# Docker's client only: what it starts is not below this unit.",
        "DynamicUser=yes",
        "SupplementaryGroups=docker",
        f"RuntimeDirectory={name}",
        f"Environment=DOCKER_CONFIG=%t/{name}",
        "RestrictAddressFamilies=AF_UNIX",
        "PrivateDevices=yes",
        "ProtectHome=yes",
        "CapabilityBoundingSet=",
        "MemoryDenyWriteExecute=yes",
        "MemoryMax=512M",
        "TasksMax=256",
    ]


def _program(name: str, how: Program, options: Sequence[str]) -> list[str]:
    home = f"%S/{name}"
    variables = [
        f"HOME={home}",
        f"XDG_CONFIG_HOME={home}",
        f"XDG_CACHE_HOME=%C/{name}",
        f"HF_HOME=%C/{name}/huggingface",
        f"MAESTRALE_GRACE={GRACE}",
        "PYTHONDONTWRITEBYTECODE=1",
    ]
    if how.paths:
        variables.append(f"PYTHONPATH={_literal(how.paths)}")
    if how.bytecode:
        variables.append(f"PYTHONPYCACHEPREFIX={_literal(how.bytecode)}")
    in_home = any(path.startswith(("/home/", "/root/")) for path in (how.python, how.paths))
    families = "AF_UNIX AF_INET AF_INET6" + (" AF_NETLINK" if how.gpus else "")
    lines = [
        f"ExecStart={_line([how.python, '-P', '-m', 'maestrale', 'serve', *options])}",
        "# An upgrade: another process takes over, and becomes the main one.",
        "# (The shell has its own kill; not every machine has /bin/kill.)",
        "ExecReload=/bin/sh -c 'kill -HUP ${MAINPID}'",
        "NotifyAccess=all",
        "# The port's sockets, kept over a restart.",
        f"FileDescriptorStoreMax={MOST_SOCKETS}",
        *(f'Environment="{variable}"' for variable in variables),
        f"WorkingDirectory={home}",
        "DynamicUser=yes",
        f"StateDirectory={name}",
        f"CacheDirectory={name}",
        "# The engine's death is the program's to mend.",
        "OOMPolicy=continue",
        "KillMode=mixed",
        "LimitNOFILE=65536",
        f"MemoryMax={MEMORY_SHARE}%",
        f"TasksMax={MOST_TASKS}",
        f"RestrictAddressFamilies={families}",
        f"ProtectHome={'read-only' if in_home else 'yes'}",
    ]
    if how.gpus:
        lines += ["# No MemoryDenyWriteExecute: on GPUs kernels are compiled while it runs."]
        lines += ["DevicePolicy=closed", "DeviceAllow=char-nvidia-frontend rw"]
        lines += ["DeviceAllow=char-nvidia rw", "DeviceAllow=char-nvidia-uvm rw"]
        lines += ["DeviceAllow=char-nvidia-caps rw"]
    else:
        lines += ["PrivateDevices=yes", "MemoryDenyWriteExecute=yes"]
    if how.low_port:
        lines += ["CapabilityBoundingSet=CAP_NET_BIND_SERVICE"]
        lines += ["AmbientCapabilities=CAP_NET_BIND_SERVICE"]
    else:
        lines += ["CapabilityBoundingSet=", "PrivateUsers=yes"]
    return lines


def _pauses(systemd: int) -> list[str]:
    if systemd >= GROWING_PAUSES:
        return ["RestartSec=1s", "RestartSteps=6", "RestartMaxDelaySec=60s"]
    return ["RestartSec=10s"]  # this systemd knows no growing pauses


_HARDENED = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "ProtectProc=invisible",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
)

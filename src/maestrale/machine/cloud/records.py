"""What `create` made, one file for each machine, so that it can go on, be found and be deleted.

A file holds the service's key: its mode is 0600, the folder's 0700.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from maestrale.errors import MachineError
from maestrale.files import replace_file

LAUNCHING, UP, SERVING, STOPPED = "launching", "up", "serving", "stopped"


@dataclass(frozen=True)
class Login:
    """How to reach the machine by SSH. `proxy`: a ProxyCommand, where it has no address."""

    host: str
    port: int
    user: str
    identity: str
    proxy: str = ""


@dataclass(frozen=True)
class MachineRecord:
    """One machine. `phase`: launching, up (it is there), serving (proved), stopped."""

    name: str
    cloud: str
    region: str
    instance: str
    gpu: str
    price: float
    key: str
    phase: str = LAUNCHING
    login: Login | None = None
    static: str = ""  # an address that is claimed, and costs until it is released
    model: str = ""
    domain: str = ""
    autostop: int = 0
    deletes: bool = False  # what autostop does
    count: int = 0  # of GPUs
    disk: int = 0  # GB
    spot: bool = False
    image: str = ""
    made: float = field(default_factory=time.time)


class Book:
    """The records in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def task_path(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def known_hosts(self, name: str) -> Path:
        return self.folder / f"{name}.known_hosts"

    def find(self, name: str) -> MachineRecord | None:
        """The record, or None. Raises: MachineError when its file is broken."""
        path = self.path(name)
        try:
            values = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise MachineError(
                f"{path} can't be read ({error}). Is the machine still up?"
            ) from error
        known = {one.name for one in fields(MachineRecord)}
        login = values.get("login")
        values["login"] = Login(**login) if login else None
        return MachineRecord(**{name: value for name, value in values.items() if name in known})

    def all(self) -> Iterator[MachineRecord]:
        for path in sorted(self.folder.glob("*.json")):
            record = self.find(path.stem)
            if record is not None:
                yield record

    def write(self, record: MachineRecord) -> MachineRecord:
        """Keep it, whole or not at all."""
        self.write_text(self.path(record.name), json.dumps(asdict(record), indent=2) + "\n")
        return record

    def write_text(self, path: Path, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            replace_file(path, text, mode=0o600, durable=True)
        except OSError as error:
            raise MachineError(f"Can't write {path}: {error.strerror}.") from error

    def remove(self, name: str) -> None:
        for path in (self.path(name), self.task_path(name), self.known_hosts(name)):
            path.unlink(missing_ok=True)

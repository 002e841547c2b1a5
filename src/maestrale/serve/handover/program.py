"""What a server would be if it were started now, held against what it is."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import maestrale
from maestrale.errors import MaestraleError

LAUNCHER = "MAESTRALE_LAUNCHER"  # the checkout's, by which this was started
VARIABLE = "MAESTRALE_HANDOVER"  # a successor's: its file descriptor of the channel to the old one
_VERSION = re.compile(r'^__version__ = "([^"]*)"', re.MULTILINE)


class Program:
    """The program that runs, as it was at its start. Make it before anything else is imported."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        launcher = environment.get(LAUNCHER)
        begun = [sys.executable, *sys.orig_argv[1:]]
        self.command = [launcher, *sys.argv[1:]] if launcher else begun
        """Starts a server as this one was started."""
        self._folder = Path(maestrale.__file__).parent
        self._files = self._stamp()
        self._settings: Callable[[], object] = lambda: None
        self._given: object = None

    def settings(self, read: Callable[[], object]) -> None:
        """`read` gives the settings of a start. Raises: what it raises."""
        self._given, self._settings = read(), read

    def change(self) -> str:
        """What is other than it was at the start, in words; "": nothing."""
        if self._stamp() != self._files:
            now, was = self._version(), maestrale.__version__
            told = f" (version {was}, now {now})" if now and now != was else ""
            return f"the program's files were changed{told}"
        try:
            now_given = self._settings()
        except MaestraleError:  # its successor tells what is wrong with them, or knows them
            return "the settings were changed"
        return "" if now_given == self._given else "the settings were changed"

    def _version(self) -> str:
        try:
            found = _VERSION.search((self._folder / "__init__.py").read_text())
        except (OSError, ValueError):
            return ""
        return found[1] if found else ""

    def _stamp(self) -> frozenset[tuple[object, ...]]:
        """Of our own files, and of what is installed beside them."""
        stamps: set[tuple[object, ...]] = set()
        for folder, folders, files in os.walk(self._folder):
            folders[:] = [each for each in folders if each != "__pycache__"]
            for name in files:
                try:
                    found = os.stat(os.path.join(folder, name))
                except OSError:  # just replaced
                    continue
                stamps.add((folder, name, found.st_size, found.st_mtime_ns))
        for folder in sys.path:
            try:
                names = os.listdir(folder or ".")
            except OSError:
                continue
            # Their names have the versions.
            stamps |= {(folder, name) for name in names if name.endswith(".dist-info")}
        return frozenset(stamps)

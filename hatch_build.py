"""Puts the CPU engine's kernel into the wheel, compiled for x86-64 and 64-bit ARM, so that no
machine that installs it needs a compiler. HATCH_BUILD_NO_HOOKS=true makes a wheel without: for
any platform, and the kernel is compiled at the first start, as in a checkout.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "maestrale/engines/cpu/kernel"


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Named in pyproject.toml, with the compiler that it uses."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # a checkout compiles its own sources
            return
        sys.path.insert(0, str(Path(self.root, "src")))
        from maestrale.engines.cpu.kernel.wheel import libraries, tag

        self.after = ExitStack()
        phases: list[str] = []

        def progress(phase: str, fraction: float | None) -> None:
            if phase not in phases:
                phases.append(phase)
                self.app.display_info(phase)

        for file in libraries(self._folder(), progress):
            build_data["force_include"][str(file)] = f"{PACKAGE}/{file.name}"
        build_data["pure_python"] = False
        build_data["tag"] = tag()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.after.close()

    def _folder(self) -> Path:
        """Where the libraries are kept for the next wheel of the same sources: the user's cache,
        or where that can't be, nowhere."""
        try:
            cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            folder = Path(cache, "maestrale", "kernel")
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
        except (OSError, RuntimeError):
            pass
        return Path(self.after.enter_context(tempfile.TemporaryDirectory(prefix="maestrale-")))

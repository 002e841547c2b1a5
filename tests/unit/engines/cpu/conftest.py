"""The kernel, compiled once and kept in the cache of this user."""

from __future__ import annotations

from pathlib import Path

import pytest

from maestrale.config.paths import default_cache_dir
from maestrale.engines.cpu.kernel import build


@pytest.fixture(scope="session")
def kernel() -> Path:
    """The kernel's library."""
    return build.library(default_cache_dir(), lambda phase, fraction: None)

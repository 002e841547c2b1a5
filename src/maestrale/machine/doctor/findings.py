"""What doctor is asked about, and what it says: one finding for each thing it looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FindingState = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Asked:
    """`target`: as it was typed, empty for this machine. `port`: the service's.

    `now`: seconds since 1970 here when the probe began, for the offset of the other clock.
    """

    target: str = ""
    port: int = 8000
    now: float | None = None

    @property
    def setup(self) -> str:
        """The command that sets this machine up."""
        return f"maestrale setup {self.target}".strip()


@dataclass(frozen=True)
class Finding:
    """`check` is its stable name. What is not ok has one `remedy`; `command` types it, if one can.

    `what` and `remedy` are sentences for a person.
    """

    check: str
    state: FindingState
    what: str
    remedy: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        assert (self.state == "ok") == (not self.remedy), f"{self.check}: one remedy, or none"


def verdict(findings: Sequence[Finding]) -> FindingState:
    """The worst state of all."""
    states = {finding.state for finding in findings}
    return "problem" if "problem" in states else "warning" if "warning" in states else "ok"


def shown_size(size: int) -> str:
    """Bytes in GiB, or MiB where that is less than one."""
    if size < 1 << 30:
        return f"{size >> 20} MiB"
    value = size / (1 << 30)
    return f"{value:.0f} GiB" if value >= 10 else f"{value:.1f} GiB"


def dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))

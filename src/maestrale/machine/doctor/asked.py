"""What the person asked about, as far as the findings depend on it."""

from __future__ import annotations

from dataclasses import dataclass


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

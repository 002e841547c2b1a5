"""What a setup says and installs, as the tests on whole machines look at it."""

from __future__ import annotations

from dataclasses import dataclass, field

from maestrale.machine.setup.run import StepOutcome

VERSION = "580.95.05-1"
DRIVER = {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1"}


@dataclass
class Notes:
    """Keeps what a person would read."""

    lines: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.lines.append(line)

    def begin(self, doing: str) -> None: ...

    def end(self, outcome: StepOutcome) -> None: ...

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

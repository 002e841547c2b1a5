"""The probe's output, cut into its sections."""

from __future__ import annotations

from dataclasses import dataclass

TIMED_OUT = (124, 137, 143)  # `timeout`'s statuses, and those of a killed child


@dataclass(frozen=True)
class Section:
    """`status` None: the probe was cut short within this section."""

    text: str
    status: int | None

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def hung(self) -> bool:
        return self.status is None or self.status in TIMED_OUT

    @property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.splitlines() if line.strip()]


MISSING = Section("", -1)


@dataclass(frozen=True)
class Sections:
    """By name; one that the probe did not write reads as empty and failed."""

    found: dict[str, Section]

    def __getitem__(self, name: str) -> Section:
        return self.found.get(name, MISSING)

    def __contains__(self, name: str) -> bool:
        return name in self.found

    @property
    def unanswered(self) -> tuple[str, ...]:
        return tuple(name for name, one in self.found.items() if one.hung)


def split_sections(text: str) -> Sections:
    """Whatever stands before the probe's first line (a login message, say) is left out."""
    found: dict[str, Section] = {}
    name, lines = "", list[str]()
    _, _, body = text.partition("@@maestrale 1")
    for line in body.split("\n"):
        line = line.rstrip("\r")
        if line.startswith("@@= "):
            number = line[4:].strip()
            status = int(number) if number.isdigit() else -1
            if name:
                found[name] = Section("\n".join(lines).strip("\n"), status)
            name = ""
        elif line.startswith("@@ "):
            name, lines = line[3:].strip(), []
            found[name] = Section("", None)
        elif name:
            # It is shown on a terminal, and the machine may be anyone's.
            lines.append("".join(c if c.isprintable() or c == "\t" else "?" for c in line))
    if name:
        found[name] = Section("\n".join(lines).strip("\n"), None)
    return Sections(found)

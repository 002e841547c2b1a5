"""Line charts as inline SVG: no script, no font, no host but the page itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 16, 46
COLOURS = ("var(--one)", "var(--two)", "var(--three)", "var(--four)", "var(--five)", "var(--six)")


@dataclass(frozen=True)
class Line:
    """A named series of (x, y); `notes` are written beside its points."""

    name: str
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] = field(default=())
    marks: bool = True


def chart(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, log_x: bool = False
) -> str:
    """The lines in one pair of axes. Both begin at 0, but a logarithmic x."""
    lines = [line for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points] or [1.0]
    ys = [y for line in lines for _, y in line.points] or [1.0]
    x_axis = _LogAxis(min(xs), max(xs)) if log_x else _Axis(max(xs))
    y_axis = _Axis(max(ys))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        *_grid(x_axis, y_axis),
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" '
        f'text-anchor="middle">{escape(x_label)}</text>',
        f'<text class="axis" transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) '
        f'rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    for line, colour in zip(lines, COLOURS * len(lines), strict=False):
        places = [(_across(x_axis.share(x)), _up(y_axis.share(y))) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" style="stroke:{colour}"/>')
        if line.marks:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" style="fill:{colour}"/>'
                for x, y in places
            ]
        for (x, y), note in zip(places, line.notes, strict=False):
            anchor = "end" if x > WIDTH - 90 else "start"
            shift = -7 if anchor == "end" else 7
            parts.append(
                f'<text class="note" x="{x + shift:.1f}" y="{max(TOP + 8, y - 6):.1f}" '
                f'text-anchor="{anchor}">{escape(note)}</text>'
            )
    parts.append("</svg>")
    return "\n".join([*parts, _legend(lines)])


class _Axis:
    """From 0 to a round number."""

    def __init__(self, most: float) -> None:
        step = nice_step(most)
        count = max(1, math.ceil(most / step - 1e-9))
        self.ticks = [step * number for number in range(count + 1)]

    def share(self, value: float) -> float:
        return value / self.ticks[-1]


class _LogAxis:
    """Powers of two from below `least` to above `most`."""

    def __init__(self, least: float, most: float) -> None:
        low = math.floor(math.log2(max(least, 1e-9)))
        high = max(low + 1, math.ceil(math.log2(max(most, 1e-9))))
        self.ticks = [2.0**power for power in range(low, high + 1)]
        self._low, self._high = low, high

    def share(self, value: float) -> float:
        return (math.log2(max(value, 1e-9)) - self._low) / (self._high - self._low)


def nice_step(most: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that makes about five ticks up to `most`."""
    if most <= 0 or not math.isfinite(most):
        return 1.0
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _across(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _up(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _grid(x_axis: _Axis | _LogAxis, y_axis: _Axis) -> list[str]:
    parts = []
    for value in x_axis.ticks:
        x = _across(x_axis.share(value))
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
            f"{spelled(value)}</text>"
        )
    for value in y_axis.ticks:
        y = _up(y_axis.share(value))
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">'
            f"{spelled(value)}</text>"
        )
    return parts


def _legend(lines: Sequence[Line]) -> str:
    entries = "".join(
        f'<span><i style="background:{colour}"></i>{escape(line.name)}</span>'
        for line, colour in zip(lines, COLOURS * len(lines), strict=False)
    )
    return f'<div class="legend">{entries}</div>'


def spelled(value: float) -> str:
    """A tick's number: 0.05, 20, 1.5k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{round(value, 6):g}"

"""One setting's value: from what a flag, a variable or a TOML file holds to its type.

Each function raises ValueError with the end of a sentence that says what is allowed; the
reader in `config/reading.py` puts the setting's name before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maestrale.config.sampling import write_sampling

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}iB": 1 << (10 * power) for power, letter in enumerate("KMGT", start=1)}
_UNITS |= {f"{letter}B": 10 ** (3 * power) for power, letter in enumerate("KMGT", start=1)}
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


def parse_size(value: object) -> int:
    """Bytes of a size such as `512MiB`, `2GiB`, `1.5 GB` or a plain number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)", str(value).strip())
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise ValueError("a size is needed, such as 512MiB or 2GiB")
    return int(float(match[1]) * units[match[2].lower()])


_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float | None:
    """Seconds of a time such as `30s`, `5m`, `2h` or a plain number of seconds; None for `-1`.

    Raises: ValueError that says what is allowed.
    """
    plain = text.strip().lower()
    if plain == "-1":
        return None
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([smhd]?)", plain)
    if match is None:
        raise ValueError("a time is needed, such as 30s, 5m or 2h, or -1 for ever")
    return float(match[1]) * _SECONDS[match[2]]


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError("true or false is needed")


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,30}", value.strip()):
        return int(value)
    raise ValueError("a whole number is needed")


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,30}(\.[0-9]*)?", value.strip()):
        return float(value)
    raise ValueError("a number is needed")


def _text(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError("a text is needed")


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    path = Path(_text(value))
    # `~` alone or before a slash; a shell has expanded it in a flag, but not in TOML.
    return path.expanduser() if path.parts[:1] == ("~",) else path


def _texts(value: object) -> tuple[str, ...]:
    """Several: a list, or one text with commas."""
    several: list[str] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(item, str):
            raise ValueError("a text or a list of texts is needed")
        several += [part.strip() for part in item.split(",")]
    parts = tuple(part for part in several if part)
    if several and not parts:
        raise ValueError("a text is needed")
    return parts


_BY_TYPE: Mapping[Any, Callable[[object], Any]] = {
    bool: _boolean,
    int: _integer,
    float: _number,
    str: _text,
    Path: _path,
    tuple[str, ...]: _texts,
}


def read_value(value: object, kind: Any, rules: Mapping[str, Any]) -> Any:
    """`value` as `kind`, one of the types of `Settings`' fields, within the field's `rules`.

    Rules: `choices`, `minimum`, `maximum` (inclusive), `size` (texts such as 1GiB are taken),
    `duration` (texts such as 5m, see `parse_duration`), `range` (see `parse_range`), `sampling`
    (see `write_sampling`).

    Raises: ValueError that says what is allowed; it never repeats the value.
    """
    if rules.get("size"):
        size = parse_size(value)
        _check_range(size, rules)
        return size if kind is int else _text(str(value))
    if rules.get("duration"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        text = _text(f"{value:g}" if number else value)
        parse_duration(text)
        return text
    if rules.get("range"):
        number = isinstance(value, int) and not isinstance(value, bool)
        text = _text(str(value) if number else value)
        parse_range(text)
        return text
    if rules.get("sampling"):
        return write_sampling(value)
    parsed = _BY_TYPE[kind](value)
    if rules.get("choices") and parsed not in rules["choices"]:
        raise ValueError(f"one of {', '.join(rules['choices'])} is needed")
    if kind in (int, float):
        _check_range(parsed, rules)
    return parsed


def check_text(value: object) -> None:
    """A flag or a variable may hold any bytes. Raises: ValueError for those that are no UTF-8."""
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError("a text in UTF-8 is needed") from error


def _check_range(number: float, rules: Mapping[str, Any]) -> None:
    low, high = rules.get("minimum"), rules.get("maximum")
    if low is not None and high is not None and not low <= number <= high:
        raise ValueError(f"it must be from {low} to {high}")
    if low is not None and number < low:
        raise ValueError(f"it must be at least {low}")


MOST_REPLICAS = 1024


def parse_range(text: str) -> tuple[int, int]:
    """`3` or `0-4` as (least, most). Raises: ValueError that says what is wrong."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", text)
    if match is None:
        raise ValueError("a number is needed, or a range as in 1-4")
    least = int(match[1])
    most = int(match[2]) if match[2] is not None else least
    if not least <= most or not 1 <= most <= MOST_REPLICAS:
        raise ValueError(
            f"the most must lie between 1 and {MOST_REPLICAS}, and the fewest stand before it"
        )
    return least, most

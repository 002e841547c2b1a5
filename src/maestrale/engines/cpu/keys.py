"""A model's metadata. Reading a key ticks it off: what is left at the end was not honoured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from maestrale.errors import ModelError

MAX_WHOLE = (1 << 31) - 1
MAX_LAYERS = 10_000


class _Required:
    """Stands for: there is no default."""


REQUIRED = _Required()


class Keys:
    """`values` by key below `prefix`; `where` names them in messages.

    Each reader takes the first of several names that is there and not null, and gives `default`
    where none is. Raises: ModelError for a value of the wrong kind, and where a required one lacks.
    """

    def __init__(self, where: str, values: Mapping[str, Any], prefix: str = "") -> None:
        self.where, self._values, self._prefix = where, values, prefix
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._values.get(self._prefix + name) is not None

    def find(self, *names: str) -> Any:
        """The value of the first name that is there, None where none is. All are ticked off."""
        self._read.update(names)
        given = (self._values.get(self._prefix + name) for name in names)
        return next((value for value in given if value is not None), None)

    def whole(
        self, *names: str, default: Any = REQUIRED, least: int = 1, most: int = MAX_WHOLE
    ) -> int:
        """A whole number; of an array, the number that all its entries are."""
        value = self.find(*names)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if isinstance(value, list):
            raise self.wrong(names[0], "differs from layer to layer, which isn't served here")
        if value is None:
            return int(self._default(names, default))
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(names[0], f"is {value!r}, no whole number")
        if not least <= value <= most:
            raise self.wrong(names[0], f"is {value}, which can't be")
        return value

    def number(self, *names: str, default: Any = REQUIRED) -> float:
        """A finite number."""
        value = self.find(*names)
        if value is None:
            return float(self._default(names, default))
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(names[0], f"is {value!r}, no number")
        if not math.isfinite(value) or abs(value) > 1e30:
            raise self.wrong(names[0], f"is {value!r}, which can't be")
        return float(value)

    def flag(self, *names: str, default: Any = REQUIRED) -> bool:
        """True or false."""
        value = self.find(*names)
        if value is None:
            return bool(self._default(names, default))
        if not isinstance(value, bool):
            raise self.wrong(names[0], f"is {value!r}, neither true nor false")
        return value

    def text(self, *names: str, default: Any = REQUIRED) -> str:
        """A text."""
        value = self.find(*names)
        if value is None:
            return str(self._default(names, default))
        if not isinstance(value, str):
            raise self.wrong(names[0], f"is {value!r}, no text")
        return value

    def entries(self, name: str, kind: type, count: int) -> list[Any] | None:
        """An array with one entry of a kind for each of `count`, None where there is none."""
        value = self.find(name)
        if value is None:
            return None
        known = isinstance(value, list) and all(type(each) is kind for each in value)
        if not known or len(value) < count:
            raise self.wrong(name, f"is no array of {count} {kind.__name__}")
        return list(value[:count])

    def below(self, name: str) -> Keys | None:
        """The object that stands under a name."""
        value = self.find(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(name, f"is {value!r}, no object")
        return Keys(f"{self.where}, {name}", value)

    def must_be(self, name: str, *allowed: Any) -> None:
        """Refuse a key that changes the result, unless its value changes nothing."""
        value = self.find(name)
        if value is not None and value not in allowed:
            raise self.wrong(name, f"is {value!r}, which isn't served here")

    def ignore(self, *names: str) -> None:
        """Tick off what changes nothing."""
        self._read.update(names)

    def unread(self, harmless: Iterable[str] = ()) -> list[str]:
        """The keys below the prefix that nobody asked for, but for those that change nothing."""
        known = self._read | set(harmless)
        named = (key for key, value in self._values.items() if value is not None)
        below = (key[len(self._prefix) :] for key in named if key.startswith(self._prefix))
        return sorted(name for name in below if name not in known)

    def refuse_unread(self, harmless: Iterable[str] = ()) -> None:
        """Raises: ModelError that names the first key that may change the result unnoticed."""
        left = self.unread(harmless)
        if left:
            raise ModelError(
                f"{self.where} says {self._prefix + left[0]!r} "
                f"({self._values[self._prefix + left[0]]!r:.60}), which isn't known here and may "
                "change what the model computes, so it is not served. A newer maestrale may "
                "know it."
            )

    def wrong(self, name: str, what: str) -> ModelError:
        """The failure that says what is wrong with a key."""
        return ModelError(
            f"{self.where}: {self._prefix + name!r} {what}. Take another file of this model, or "
            "another model."
        )

    def _default(self, names: tuple[str, ...], default: Any) -> Any:
        if isinstance(default, _Required):
            raise ModelError(f"{self.where} lacks {self._prefix + names[0]!r}.")
        return default

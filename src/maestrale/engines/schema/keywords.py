"""What the keywords of one schema say, as shapes: draft 2020-12, and older spellings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any, Protocol, TypeGuard

from maestrale.engines.schema.document import NOTHING, Conjunction
from maestrale.engines.schema.formats import FORMATS, FREE_FORMATS, LONGEST
from maestrale.engines.schema.numbers import Bound, Numbers
from maestrale.engines.schema.shapes import (
    ANYTHING,
    Arrays,
    Literals,
    Objects,
    Shape,
    Shapes,
    Value,
    empty,
    joined,
    sealed,
)
from maestrale.engines.schema.strings import Strings, some_text

MOST = 2**24  # items, characters or properties
_TYPES = {
    "null": (0,),
    "boolean": (1,),
    "integer": (2,),
    "number": (2,),
    "string": (3,),
    "array": (4,),
    "object": (5,),
}
_NUMBER_FORMATS = {
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
_NOT_ENFORCED = ("$dynamicRef", "$recursiveRef")
_ELSEWHERE = ("$defs", "definitions", "oneOf", "type", "title", "description")
_APPLIED = ("$ref", "allOf", "anyOf")


class ShapeSource(Protocol):
    """Where the shapes of other schemas come from."""

    def conjunction(self, schema: object, base: str, keyword: str) -> Conjunction: ...
    def resolve(self, reference: object, base: str) -> Conjunction: ...
    def shapes(self, conjunction: Conjunction) -> Shapes: ...
    def accepts(self, conjunction: Conjunction, value: Value) -> bool: ...
    def both(self, left: Iterable[Shape], right: Iterable[Shape]) -> Shapes: ...
    def any_possible(self, shapes: Iterable[Shape]) -> bool: ...


class Keywords:
    """One schema's keywords, read with the help of what finds the shapes of the schemas in it."""

    def __init__(self, reader: ShapeSource, schema: dict[str, Any], base: str) -> None:
        self._reader = reader
        self._schema = schema
        self._base = base

    def shapes(self) -> Shapes:
        schema = self._schema
        for keyword in _NOT_ENFORCED:
            if keyword in schema:
                raise _unenforced(keyword)
        shapes: Shapes = ANYTHING
        described = False
        # The order of properties is that in which the schema names them.
        for keyword in schema:
            if keyword in _APPLIED:
                shapes = self._reader.both(shapes, self._applied(keyword))
            elif not described and keyword not in _ELSEWHERE:
                described = True
                shapes = self._reader.both(shapes, self._own())
        for limited in (self._negated(), *self._conditions()):
            shapes = self._reader.both(shapes, limited)
        if not described:
            shapes = self._reader.both(shapes, self._own())
        if "oneOf" in schema:  # the last, since what is beside it may tell its schemas apart
            shapes = self._one_of(shapes)
        return tuple(self._rest(shape) for shape in shapes)

    def _sub(self, schema: object, keyword: str) -> Conjunction:
        return self._reader.conjunction(schema, self._base, f"the keyword '{keyword}'")

    def _alternative(self, schema: object, keyword: str) -> Shapes:
        return self._reader.shapes(self._sub(schema, keyword))

    def _own(self) -> Shapes:
        """What the keywords about the value itself say."""
        schema = self._schema
        types = schema.get("type", list(_TYPES))
        types = [types] if isinstance(types, str) else types
        if not isinstance(types, list) or not all(isinstance(name, str) for name in types):
            raise _wrong("type", "a type's name, or a list of them")
        for name in types:
            if name not in _TYPES:
                raise ValueError(f"there is no type '{name[:40]}'")
        kept = {index for name in types for index in _TYPES[name]}
        makers: list[Callable[[], Shape]] = [
            lambda: ANYTHING[0],
            lambda: ANYTHING[1],
            lambda: self._numbers("number" not in types),
            self._strings,
            self._arrays,
            self._objects,
        ]
        shapes = [make() for index, make in enumerate(makers) if index in kept]
        shapes = [shape for shape in shapes if not empty(shape)]
        for keyword in ("const", "enum"):
            if keyword in schema:
                values = [schema["const"]] if keyword == "const" else schema["enum"]
                if not isinstance(values, list):
                    raise _wrong(keyword, "a list")
                left = self._reader.both([Literals(tuple(values))], shapes)
                kept_values = {id(v) for shape in left for v in getattr(shape, "values", ())}
                # One list, in the order given.
                shapes = [Literals(tuple(v for v in values if id(v) in kept_values))]
        return tuple(shapes)

    def _numbers(self, integer: bool) -> Numbers:
        low, high = self._bound("minimum", "exclusiveMinimum"), None
        high = self._bound("maximum", "exclusiveMaximum")
        step = self._schema.get("multipleOf", 0)
        if not _is_number(step) or ("multipleOf" in self._schema and step <= 0):
            raise _wrong("multipleOf", "a number above 0")
        if step != int(step):
            raise ValueError(
                "the keyword 'multipleOf' with a fraction can't be enforced: validators disagree "
                "on it for floating-point numbers"
            )
        # What divides by an integer is one.
        numbers = Numbers(integer or step > 0, low, high, int(step))
        form = self._schema.get("format")
        if isinstance(form, str) and form in _NUMBER_FORMATS:
            least, most = _NUMBER_FORMATS[form]
            bounds = Bound(Decimal(least)), Bound(Decimal(most))
            numbers = numbers.merge(Numbers(integer, *bounds))
        return replace(numbers, step=0) if numbers.step == 1 else numbers

    def _bound(self, keyword: str, exclusive: str) -> Bound | None:
        value, limit = self._schema.get(keyword), self._schema.get(exclusive)
        if keyword in self._schema and not _is_number(value):
            raise _wrong(keyword, "a number")
        if exclusive in self._schema and not _is_number(limit) and not isinstance(limit, bool):
            raise _wrong(exclusive, "a number")
        bounds = []
        if value is not None:  # draft 4 says aside that the bound is out
            bounds.append(Bound(_double(value), limit is True))
        if limit is not None and not isinstance(limit, bool):
            bounds.append(Bound(_double(limit), True))
        if keyword == "minimum":
            return max(bounds, key=lambda bound: (bound.value, bound.open), default=None)
        return min(bounds, key=lambda bound: (bound.value, not bound.open), default=None)

    def _strings(self) -> Strings:
        patterns: tuple[str, ...] = ()
        if "pattern" in self._schema:
            patterns = (_string(self._schema, "pattern"),)
        formats: tuple[str, ...] = ()
        if "format" in self._schema:
            name = _string(self._schema, "format")
            if name in FORMATS:
                formats = (name,)
            elif not (
                name in FREE_FORMATS | {"float", "double"} | _NUMBER_FORMATS.keys()
                or self._schema.keys() & {"const", "enum"}  # which say it all
            ):
                raise ValueError(
                    f"the format '{name[:40]}' is not known; those that are: "
                    + ", ".join(sorted(FORMATS))
                )
        low, high = self._count("minLength"), self._count("maxLength")
        for name in formats:
            longest = LONGEST.get(name)
            high = longest if high is None else min(high, longest or high)
        # zod calls a time of day without a zone `time`, too: its pattern tells.
        if patterns and formats == ("time",) and not some_text(Strings(0, None, patterns, formats)):
            formats = ("time-local",)
        return Strings(low or 0, high, patterns, formats)

    def _arrays(self) -> Arrays:
        schema = self._schema
        first, rest = schema.get("prefixItems", []), None
        if not isinstance(first, list):
            raise _wrong("prefixItems", "a list")
        following = "items"
        if isinstance(schema.get("items"), list):  # as older drafts write it
            first, following = schema["items"], "additionalItems"
        if following in schema:
            rest = self._sub(schema[following], following)
        low, high = self._count("minItems"), self._count("maxItems")
        unique = schema.get("uniqueItems", False)
        if not isinstance(unique, bool):
            raise _wrong("uniqueItems", "true or false")
        if unique and (high is None or high > 1):
            raise _unenforced("uniqueItems")
        counted = self._count("minContains")
        if "contains" in schema and not (counted == 0 and "maxContains" not in schema):
            if self._sub(schema["contains"], "contains") or "maxContains" in schema:
                raise _unenforced("contains")
            low = max(low or 0, 1 if counted is None else counted)
        items = tuple(self._sub(item, "prefixItems") for item in first)
        return Arrays(items, rest, low, high)

    def _objects(self) -> Objects:
        schema = self._schema
        properties = _mapping(schema, "properties")
        patterns = {
            pattern: self._sub(item, "patternProperties")
            for pattern, item in _mapping(schema, "patternProperties").items()
        }
        required = schema.get("required", [])
        if isinstance(required, bool):  # draft 3, and some generators: of the property itself
            required = []
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise _wrong("required", "a list of names")
        names = self._sub(schema.get("propertyNames", True), "propertyNames")
        if names and not self._reader.both(self._reader.shapes(names), (Strings(),)):
            names = (NOTHING,)
        by_pattern = Objects(patterns=tuple(patterns.items()))
        found: list[tuple[str, Conjunction]] = []
        for name, item in properties.items():
            conjunction = joined(self._sub(item, "properties"), by_pattern.property(name))
            if names and not self._reader.accepts(names, name):
                conjunction = (NOTHING,)
            found.append((name, conjunction))
        additional = None
        if "additionalProperties" in schema:
            additional = self._sub(schema["additionalProperties"], "additionalProperties")
        return Objects(
            tuple(found),
            tuple(dict.fromkeys(required)),
            additional,
            tuple(patterns.items()),
            names,
            self._count("minProperties") or 0,
            self._count("maxProperties"),
            "properties" in schema or "patternProperties" in schema,
        )

    def _count(self, keyword: str) -> int | None:
        value = self._schema.get(keyword)
        if keyword not in self._schema:
            return None
        if value is None or not _is_number(value) or value < 0 or value != int(value):
            raise _wrong(keyword, "an integer of at least 0")
        if keyword.startswith("min") and value > MOST:
            raise ValueError(f"the keyword '{keyword}' is {int(value)}: no answer is that long")
        return min(int(value), MOST)  # for nothing is longer

    def _applied(self, keyword: str) -> Shapes:
        if keyword == "$ref":
            return self._reader.shapes(self._reader.resolve(self._schema[keyword], self._base))
        alternatives = self._alternatives(keyword)
        if keyword == "allOf":
            shapes = ANYTHING
            for each in alternatives:
                shapes = self._reader.both(shapes, each)
            return shapes
        return tuple(shape for each in alternatives for shape in each)

    def _alternatives(self, keyword: str) -> list[Shapes]:
        value = self._schema[keyword]
        if not isinstance(value, list) or not value:
            raise _wrong(keyword, "a list of schemas")
        return [self._alternative(item, keyword) for item in value]

    def _one_of(self, beside: Shapes) -> Shapes:
        """Alternatives of which no value satisfies two: by themselves, or with nothing added."""
        alternatives = self._alternatives("oneOf")
        result: list[Shape] = []
        for index, each in enumerate(alternatives):
            others = [s for other, s in enumerate(alternatives) if other != index]
            shapes = self._reader.both(beside, each)
            if self._overlap(shapes, others):
                shapes = tuple(sealed(s) if isinstance(s, Objects) else s for s in shapes)
                if self._overlap(shapes, others):
                    raise ValueError(
                        "the keyword 'oneOf' needs alternatives that exclude each other (by type, "
                        "or by a 'const' property). Use 'anyOf' instead"
                    )
            result += shapes
        return tuple(result)

    def _overlap(self, shapes: Shapes, others: list[Shapes]) -> bool:
        reader = self._reader
        return any(reader.any_possible(reader.both(shapes, other)) for other in others)

    def _negated(self) -> Shapes:
        """What `not` leaves, where that is types, or nothing."""
        if "not" not in self._schema:
            return ANYTHING
        excluded = self._schema["not"]
        if not self._sub(excluded, "not"):
            return ()
        if excluded is False or excluded == {"not": {}}:
            return ANYTHING
        types = excluded.get("type") if set(excluded) == {"type"} else None
        types = [types] if isinstance(types, str) else types
        if not isinstance(types, list) or not set(types) <= _TYPES.keys() - {"integer"}:
            raise _unenforced("not")
        gone = {index for name in types for index in _TYPES[name]}
        return tuple(shape for index, shape in enumerate(ANYTHING) if index not in gone)

    def _conditions(self) -> Iterator[Shapes]:
        schema = self._schema
        if "if" in schema:
            condition = self._sub(schema["if"], "if")
            then = self._sub(schema.get("then", True), "then")
            other = self._sub(schema.get("else", True), "else")
            if not condition:
                yield self._reader.shapes(then)
            elif condition == (NOTHING,):
                yield self._reader.shapes(other)
            elif then or other:
                raise _unenforced("if")
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            for name, item in _mapping(schema, keyword).items():
                if isinstance(item, list):
                    needed: Shapes = _object(Objects(required=(name, *map(str, item))))
                else:
                    needed = self._reader.both(
                        _object(Objects(required=(name,))), self._alternative(item, keyword)
                    )
                if item not in ([], {}, True):
                    yield (*_object(Objects(((name, (NOTHING,)),))), *_only_objects(needed))

    def _rest(self, shape: Shape) -> Shape:
        """With what holds for the parts that no keyword, here or applied here, speaks of."""
        schema = self._schema
        keyword = "unevaluatedProperties"
        if isinstance(shape, Objects) and keyword in schema and shape.additional is None:
            return replace(shape, additional=self._sub(schema[keyword], keyword))
        if isinstance(shape, Arrays) and "unevaluatedItems" in schema and shape.rest is None:
            rest = self._sub(schema["unevaluatedItems"], "unevaluatedItems")
            return replace(shape, rest=rest)
        return shape


def _object(shape: Objects) -> Shapes:
    """What is such an object, or none at all."""
    return (*ANYTHING[:5], shape)


def _only_objects(shapes: Shapes) -> Shapes:
    return tuple(shape for shape in shapes if isinstance(shape, Objects))


def _is_number(value: object) -> TypeGuard[int | Decimal]:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _double(value: int | Decimal) -> Decimal:
    """A bound as those who check it read it."""
    return Decimal(value) if isinstance(value, int) else Decimal(repr(float(value)))


def _string(schema: dict[str, Any], keyword: str) -> str:
    value = schema[keyword]
    if not isinstance(value, str):
        raise _wrong(keyword, "a string")
    return value


def _mapping(schema: dict[str, Any], keyword: str) -> dict[str, Any]:
    value = schema.get(keyword, {})
    if not isinstance(value, dict):
        raise _wrong(keyword, "an object")
    return value


def _wrong(keyword: str, wanted: str) -> ValueError:
    return ValueError(f"the keyword '{keyword}' must be {wanted}")


def _unenforced(keyword: str) -> ValueError:
    return ValueError(
        f"the keyword '{keyword}' can't be enforced while decoding. Remove it, or say the same "
        "with supported keywords"
    )

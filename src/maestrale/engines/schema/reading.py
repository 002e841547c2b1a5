"""What the keywords of a JSON schema mean: each schema as the shapes that its values may have.

Schemas that hold at once (`allOf`, `$ref` beside others, a property named by two) become one list
of shapes; alternatives stand side by side. What can't be enforced while decoding is refused by
its keyword's name, never ignored. Draft 2020-12, with the older spellings that differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from maestrale.engines.schema.document import NOTHING, Conjunction, Document
from maestrale.engines.schema.keywords import Keywords
from maestrale.engines.schema.numbers import Numbers
from maestrale.engines.schema.shapes import (
    ANYTHING,
    Arrays,
    Literals,
    Objects,
    Shape,
    Shapes,
    Value,
    common,
    same,
)
from maestrale.engines.schema.strings import Strings, some_text

MAX_WORK = 100_000  # comparisons of two shapes
Need = frozenset[Conjunction]


class Reader:
    """Shapes of the schemas of a document, found when they are asked for."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._of_node: dict[int, Shapes | None] = {NOTHING: ()}  # None: it is being found
        self._of_all: dict[Conjunction, Shapes] = {(): ANYTHING}
        self._possible: dict[Conjunction, bool] = {}
        self._work = 0

    def shapes(self, conjunction: Conjunction) -> Shapes:
        """What satisfies all of them. Raises: ValueError naming what can't be enforced."""
        found = self._of_all.get(conjunction)
        if found is None:
            found = ANYTHING
            for number in conjunction:
                found = self.both(found, self._node(number))
            self._of_all[conjunction] = found
        return found

    def accepts(self, conjunction: Conjunction, value: Value) -> bool:
        """Whether a value satisfies all of them."""
        return any(self._fits(shape, value) for shape in self.shapes(conjunction))

    def possible(self, conjunction: Conjunction) -> bool:
        """Whether any finite value does."""
        if conjunction not in self._possible:
            self._find_possible(conjunction)
        return self._possible[conjunction]

    def _find_possible(self, conjunction: Conjunction) -> None:
        """The least answer that holds for all that this one needs: what needs itself is not."""
        needs: dict[Conjunction, list[Need]] = {}
        todo = [conjunction]
        while todo:
            each = todo.pop()
            if each not in needs and each not in self._possible:
                needs[each] = [way for shape in self.shapes(each) for way in self._needs(shape)]
                todo += [needed for way in needs[each] for needed in way]
        true = {each for each, possible in self._possible.items() if possible}
        grown = True
        while grown:
            grown = False
            for each, ways in needs.items():
                if each not in true and any(way <= true for way in ways):
                    true.add(each)
                    grown = True
        self._possible |= {each: each in true for each in needs}

    def _needs(self, shape: Shape) -> list[Need]:
        """What must be possible for a value of this shape, in each way to one."""
        if isinstance(shape, Strings):
            return [frozenset()] if some_text(shape) else []
        if isinstance(shape, Arrays):
            low = shape.low or 0
            needed = (shape.item(index) for index in range(min(low, len(shape.first) + 1)))
            return [] if shape.high is not None and low > shape.high else [frozenset(needed)]
        if not isinstance(shape, Objects):
            return [frozenset()]
        if not all(self.accepts(shape.names, name) for name in shape.required):
            return []
        needed_all = frozenset(shape.property(name) for name in shape.required)
        if shape.low <= len(shape.required):
            return [needed_all]
        # One more than those, of which any will do.
        more = [
            value
            for name, value in shape.properties
            if name not in shape.required and self.accepts(shape.names, name)
        ]
        more += [value for _, value in shape.patterns]
        more += [shape.additional or ()] if shape.open else []
        return [needed_all | {value} for value in more] if self.possible(shape.names) else []

    def _fits(self, shape: Shape, value: Value) -> bool:
        if isinstance(shape, Literals):
            return any(same(each, value) for each in shape.values)
        if isinstance(shape, Numbers):
            number = isinstance(value, int | Decimal) and not isinstance(value, bool)
            return number and shape.accepts(value)
        if isinstance(shape, Strings):
            return isinstance(value, str) and shape.accepts(value)
        if isinstance(shape, Arrays):
            if not isinstance(value, list) or len(value) < (shape.low or 0):
                return False
            if shape.high is not None and len(value) > shape.high:
                return False
            return all(self.accepts(shape.item(i), item) for i, item in enumerate(value))
        if not isinstance(value, dict) or not value.keys() >= set(shape.required):
            return False
        if len(value) < shape.low or (shape.high is not None and len(value) > shape.high):
            return False
        return all(
            self.accepts(shape.property(name), item) and self.accepts(shape.names, name)
            for name, item in value.items()
        )

    def both(self, left: Iterable[Shape], right: Iterable[Shape]) -> Shapes:
        """What the alternatives of both allow. Raises: ValueError where there are too many."""
        if left is ANYTHING or right is ANYTHING:
            return tuple(right if left is ANYTHING else left)
        result: list[Shape] = []
        for a in left:
            for b in right:
                self._work += 1
                if self._work > MAX_WORK:
                    raise ValueError("it is too large or too complex")
                shape = common(a, b, self._fits)
                if shape is not None:
                    result.append(shape)
        return tuple(result)

    def _node(self, number: int) -> Shapes:
        if number in self._of_node:
            found = self._of_node[number]
            if found is None:
                raise ValueError("a '$ref' leads back to itself, so that no text can satisfy it")
            return found
        self._of_node[number] = None
        node = self._document.nodes[number]
        shapes = Keywords(self, node.schema, node.base).shapes()
        self._of_node[number] = shapes
        return shapes

    def resolve(self, reference: object, base: str) -> Conjunction:
        """The schema that a `$ref` points to. Raises: ValueError."""
        return self._document.resolve(reference, base)

    def conjunction(self, schema: object, base: str, keyword: str) -> Conjunction:
        """The schema by its number. Raises: ValueError naming the keyword."""
        return self._document.conjunction(schema, base, keyword)

    def any_possible(self, shapes: Iterable[Shape]) -> bool:
        """Whether any finite value has one of these shapes."""
        return any(all(map(self.possible, way)) for shape in shapes for way in self._needs(shape))

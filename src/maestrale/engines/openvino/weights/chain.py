"""What one operation of `projection.cpp` computes: products that follow each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

OPERATION = "Projection"


GIVEN = -1  # for a stage's source or residual: the operation's next input
NONE = -2
NOT_WHOLE = -3  # no stage's whole result
NO_PARTS = (0,) * 6


@dataclass(frozen=True)
class Stage:
    """One product of a chain. `source`, `residual`: earlier stages, `GIVEN` or `NONE`.

    Its weights: `bits`, [columns, width]. `parts`: for attention, the stage and the first column of
    queries, keys and values; `source` says nothing then.
    """

    columns: int
    width: int
    bits: int
    before: str = "nothing"
    epsilon: float = 0.0
    source: int = GIVEN
    residual: int = NONE
    parts: tuple[int, ...] = NO_PARTS


@dataclass(frozen=True)
class Heads:
    """Of attention: how many there are of queries, and of keys and values; how wide each is;
    whether queries and keys get rotary embedding first.
    """

    queries: int = 0
    kept: int = 0
    width: int = 0
    scale: float = 0.0
    turned: bool = False


@dataclass(frozen=True)
class Chain:
    """What one operation computes. `outputs`: (stage, columns), each stage's from its first on.

    `rotated`: for each output the width of the heads to which rotary embedding is applied, or 0.
    All have the same width, cosines and sines. `heads`: of the stages that begin with attention.
    """

    stages: list[Stage]
    outputs: list[tuple[int, int]]
    rotated: list[int]
    heads: Heads = Heads()

    @staticmethod
    def of(node: Any) -> Chain:
        """The chain that a node of the operation computes."""
        found = node.get_attributes()
        names = ("columns", "widths", "bits", "before", "epsilons", "sources", "residuals")
        values = zip(*(found[name] for name in names), strict=True)
        parts = np.reshape(found["parts"], (-1, len(NO_PARTS))).tolist()
        stages = [
            replace(Stage(*one), parts=tuple(part)) for one, part in zip(values, parts, strict=True)
        ]
        outputs = list(zip(found["results"], found["lengths"], strict=True))
        queries, kept, width = found["heads"]
        heads = Heads(queries, kept, width, found["scale"], found["turned"])
        return Chain(stages, outputs, list(found["rotated"]), heads)

    @staticmethod
    def plain(stages: list[Stage], outputs: list[tuple[int, int]]) -> Chain:
        """One without rotary embedding."""
        return Chain(stages, outputs, [0] * len(outputs))

    @property
    def given(self) -> int:
        """How many of the operation's inputs are no constants; they come first."""
        inputs = sum((one.source == GIVEN) + (one.residual == GIVEN) for one in self.stages)
        return inputs + 2 * any(self.rotated)

    def made_by(self, output: int) -> int:
        """The stage whose whole result an output is, or `NOT_WHOLE`."""
        stage, length = self.outputs[output]
        return stage if length == self.stages[stage].columns else NOT_WHOLE

    def attributes(self) -> dict[str, Any]:
        """As the operation's node has them."""
        return {
            "columns": [stage.columns for stage in self.stages],
            "widths": [stage.width for stage in self.stages],
            "bits": [stage.bits for stage in self.stages],
            "before": [stage.before for stage in self.stages],
            "epsilons": [stage.epsilon for stage in self.stages],
            "sources": [stage.source for stage in self.stages],
            "residuals": [stage.residual for stage in self.stages],
            "results": [stage for stage, _ in self.outputs],
            "lengths": [length for _, length in self.outputs],
            "rotated": self.rotated,
            "parts": [part for stage in self.stages for part in stage.parts],
            "heads": [self.heads.queries, self.heads.kept, self.heads.width],
            "scale": self.heads.scale,
            "turned": self.heads.turned,
        }

"""What several commands ask alike: parameters of one kind, and which of them were given."""

from __future__ import annotations

import math
from typing import Any

import click
from click.core import ParameterSource


def given_names(context: click.Context) -> set[str]:
    """The names of the parameters that were given."""
    return {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


class FiniteRange(click.FloatRange):
    """A finite number between two bounds, of which the upper one may be left out."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return float(number)

"""What stands on the command line itself, and not in defaults or the environment."""

from __future__ import annotations

import click
from click.core import ParameterSource


def given_names(context: click.Context) -> set[str]:
    """The names of the parameters that were given."""
    return {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }

"""How commands print a line: what is in it from outside went through the cleaner."""

from __future__ import annotations

import click

from maestrale.printable import printable


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print on stdout, or stderr; `nl`: with a line's end."""
    click.echo(printable(str(text)), err=err, nl=nl)

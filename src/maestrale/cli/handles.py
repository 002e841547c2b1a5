"""Standard input, output and error are there, whatever the process was started with.

Where one is closed, the next file or socket that is opened would take its number, and what is
written to stderr would go into it.
"""

from __future__ import annotations

import os
import sys


def open_standard_handles() -> None:
    """Open /dev/null in the place of those that are closed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            stream = os.fdopen(number, mode, encoding="utf-8", errors="replace", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

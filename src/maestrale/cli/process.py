"""The process as a command finds it: standard handles that may be closed, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def open_standard_handles() -> None:
    """Open /dev/null in the place of those that are closed.

    Else the next file or socket that is opened would take its number, and what is written to
    stderr would go into it.
    """
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


EXIT_CODE = 130  # as shells tell of a program that Ctrl-C ended


def end_at_once_on_ctrl_c() -> None:
    """Until `raise_on_ctrl_c`, or a handler of the command's own.

    Python's own way, an exception in the midst of the imports, can be lost in a `__del__` or a
    callback, and the key press with it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_on_ctrl_c() -> None:
    """Make it a KeyboardInterrupt again, for commands that have something to put in order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)

"""Ctrl-C before a command begins: there is nothing to put in order yet, so the process just ends.

Python's own way, an exception in the midst of the imports, can be lost in a `__del__` or a
callback, and the key press with it.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

EXIT_CODE = 130  # as shells tell of a program that Ctrl-C ended


def end_at_once_on_ctrl_c() -> None:
    """Until `raise_on_ctrl_c`, or a handler of the command's own."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_on_ctrl_c() -> None:
    """Make it a KeyboardInterrupt again, for commands that have something to put in order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)

"""Give large buffers back to the system when they are freed."""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE = 256 * 1024  # bytes


def return_large_buffers() -> None:
    """Let each large buffer be a mapping of its own, gone when it is freed.

    By itself glibc raises this threshold up to 32 MB as buffers are freed; then the bodies of a
    flood leave holes in the heap, and the process keeps hundreds of megabytes for ever. Other
    C libraries have no such setting, and nothing is done.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)

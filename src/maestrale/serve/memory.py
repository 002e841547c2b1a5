"""Give memory back to the system when it is freed."""

from __future__ import annotations

import contextlib
import ctypes
import gc

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


def return_free_memory() -> None:
    """Give back what is free on the heap, between what isn't: that takes some 50 ms.

    By itself glibc gives back the heap's end only. Other C libraries do as they do. What is in
    circles is freed first: an error in a template leaves one, which holds the whole tokenizer.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

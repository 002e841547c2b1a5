"""Logs: text or JSON lines on stderr, one line a request, no prompt text unless asked for."""

from __future__ import annotations

import atexit
import collections
import contextlib
import json
import logging
import os
import sys
import threading
import time

import msgspec

from maestrale.printable import one_line, printable, printable_json

LOGGER = logging.getLogger("maestrale")
REQUESTS = logging.getLogger("maestrale.request")
FIELDS = "fields"  # the attribute of a record that carries structured fields

MOST_WAITING = 4 << 20  # characters of lines that wait to be written
LAST_LINES = 1.0  # seconds that the end of the process waits for its last lines


def configure(level: str, log_format: str) -> None:
    """Send our log and our libraries' to stderr in one form. Arguments are as in Settings."""
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    for name in ("maestrale", "uvicorn", "opentelemetry"):
        handler = _ToStderr()
        handler.setFormatter(formatter)
        if name == "opentelemetry":  # tells of each try to reach a collector
            handler.addFilter(OncePer(60.0))
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    # uvicorn's lines about sockets and processes repeat what ours say.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, LOGGER.level))


class OncePer(logging.Filter):
    """Lets one record pass, and no other for so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._passed = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created - self._passed < self._seconds:
            return False
        self._passed = record.created
        return True


class _ToStderr(logging.Handler):
    """Hands lines to `WRITER`, so that whoever logs never waits for a reader."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            WRITER.put(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


class Writer:
    """Writes lines to stderr in a thread of its own.

    A pipe that nobody reads from would stop whoever writes to it, and with it the whole server.
    So lines wait here; when too many do, further ones are dropped and counted. A reader that is
    gone is nobody's loss.
    """

    def __init__(self, most_bytes: int = MOST_WAITING) -> None:
        self._most = most_bytes
        self._lines: collections.deque[str] = collections.deque()
        self._size = 0
        self._dropped = 0
        self._writing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Have it written soon."""
        with self._changed:
            if self._size + len(line) > self._most:
                self._dropped += 1
                return
            if self._dropped:
                line = f"({self._dropped} lines of the log were dropped: nobody read them)\n{line}"
                self._dropped = 0
            self._lines.append(line)
            self._size += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float = LAST_LINES) -> None:
        """Wait until all is written, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._writing, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._lines))
                line = self._lines.popleft()
                self._size -= len(line)
                self._writing = True
            # A disk that is full, a reader that is gone: there is nowhere to tell of it.
            with contextlib.suppress(OSError, ValueError):
                _write(line)


def _write(line: str) -> None:
    """To what is `sys.stderr` at the moment: a progress bar, while it moves, puts itself in its
    place, so that lines come above it and not into it.
    """
    stream = sys.stderr
    if stream is not sys.__stderr__ or stream is None:
        if stream is not None:
            stream.write(line)
            stream.flush()
        return
    # Past the stream's own buffer, whose lock would hold up the end of the process.
    data = line.encode(errors="backslashreplace")
    while data:
        data = data[os.write(stream.fileno(), data) :]


WRITER = Writer()
atexit.register(WRITER.flush)


class TextFormatter(logging.Formatter):
    """`time level message key=value …` on one line, whatever a client put into it."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [
            time.strftime("%H:%M:%S", time.localtime(record.created)),
            record.levelname.lower().ljust(7),
            one_line(record.getMessage()),
        ]
        for key, value in getattr(record, FIELDS, {}).items():
            parts.append(f"{key}={one_line(str(value))}")
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + printable(self.formatException(record.exc_info))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            return printable_json(msgspec.json.encode(entry).decode())
        except UnicodeEncodeError:  # the name of a file, which may hold any bytes
            return json.dumps(entry, default=str)

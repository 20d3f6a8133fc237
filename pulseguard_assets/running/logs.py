"""What the children print, kept in files that cannot grow for ever.

Belongs here: turning a stream of bytes into lines, and the bounded file they end up in.
Does not: deciding what to do about a line; nobody here reads them for meaning.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

# 5 MB in use and two predecessors: at most 15 MB per child, about a month of a quiet daemon.
MAX_BYTES = 5 * 1024 * 1024
KEPT_FILES = 2
# Enough of a traceback to show why a child did not start.
TAIL_LINES = 25
# A "line" without an end (a progress bar, binary junk) is cut here instead of filling the memory.
MAX_LINE_BYTES = 64 * 1024

# Dagster colours its output whether or not anybody can see colours.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _File(RotatingFileHandler):
    """A bounded file that says once when it cannot be written, where logging prints tracebacks."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        super().__init__(
            path, maxBytes=MAX_BYTES, backupCount=KEPT_FILES, encoding="utf-8", delay=True
        )
        self._say = say
        self._failing = self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        self._failing = self._failed

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if not self._failing:
            self._say(f"{self.baseFilename} cannot be written: {error.strerror}. Make room there.")
        self._failed = True


class ChildLog:
    """One child's output: `<folder>/<name>.log`, rotated, with its last lines at hand.

    Args:
        folder: where the file lives; created if missing.
        name: the child's name.
        echo: called with every line, prefixed with the name; None keeps the screen quiet.
        say: is told when the file cannot be written. Lines are then kept nowhere.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        echo: Callable[[str], None] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.log"
        self._name = name
        self._echo = echo
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._unfinished = b""
        self._file = _File(self.path, say)

    def write(self, data: bytes) -> None:
        """Take the next bytes, in whatever pieces they come."""
        *lines, rest = (self._unfinished + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines.append(rest)
            rest = b""
        self._unfinished = rest
        for line in lines:
            self._write_line(line.decode("utf-8", errors="replace").rstrip("\r"))

    def note(self, text: str) -> None:
        """A remark of the supervisor's own, among the child's lines."""
        self._write_line(f"[pulseguard] {text}")

    def tail(self) -> list[str]:
        """The last lines, oldest first, without blank ones at the end."""
        lines = list(self._tail)
        while lines and not lines[-1].strip():
            lines.pop()
        return lines

    def close(self) -> None:
        """Write what is left of an unfinished line and close the file."""
        if self._unfinished:
            self.write(b"\n")
        # What a full disk had no room for, which has been said.
        with suppress(OSError):
            self._file.close()

    def _write_line(self, line: str) -> None:
        line = _COLOUR.sub("", line)
        self._tail.append(line)
        self._file.emit(logging.makeLogRecord({"msg": "%s", "args": (line,)}))
        if self._echo is not None:
            self._echo(f"{self._name:<12} | {line}")

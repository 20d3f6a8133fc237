"""Commands of processes that the kernel ends with us, however we end.

Belongs here: how `launcher.py` is called. Does not: starting anything.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("launcher.py")


def launched(signum: signal.Signals, *, uid: int = -1, gid: int = -1) -> tuple[str, ...]:
    """What to write before an absolute path of a program and its arguments.

    The process gets `signum` when the thread that started it is gone; where the kernel cannot do
    that (it is Linux that can), only `uid` and `gid` are changed, -1 being none.
    """
    numbers = (os.getpid(), int(signum), uid, gid)
    return (sys.executable, "-I", "-S", str(_LAUNCHER), *map(str, numbers))

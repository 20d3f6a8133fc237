"""What a platform left running that was killed together with its guardian.

Belongs here: finding those processes, and ending them. Does not: the embedded server, which sees to
its own (`warehouse/postmaster.py`).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import psutil  # type: ignore[import-untyped]

from pulseguard_assets.running import guardian
from pulseguard_assets.running.instance import Folders

# Of this folder's platform, and of nobody else: `children.environment` sets it for every child, and
# runs inherit it from theirs.
MARK = "PULSEGUARD_CODE_SERVER_SOCKET"


def end_leftovers(folders: Folders) -> int:
    """End what an earlier platform of this folder left running; returns how many processes.

    The kernel told the children to stop when their platform died (`launcher.py`). But a code server
    then waits for its runs, whom nobody told. Two daemons, or two code servers on one socket, would
    do everything twice. Call this as the holder of the folder's lock.
    """
    found = _marked(str(folders.code_server_socket))
    # Every child leads a group of its own, with nobody in it but those it started.
    guardian.stop({group: int(signal.SIGTERM) for group in set(found.values())})
    return len(found)


def _marked(socket: str) -> dict[int, int]:
    """The processes that bear the mark of a platform with this socket, each with its group."""
    found = {}
    for process in psutil.process_iter():
        # One that ends meanwhile, or somebody else's, whose environment is closed to us.
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == socket:
                found[process.pid] = os.getpgid(process.pid)
    return found

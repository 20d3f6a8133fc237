"""The guardian: a tiny process that stops the platform's children when `pulseguard up` is killed.

Belongs here: the one thing that must work after `up` is gone. It runs as a script of its own
(`python -I -S guardian.py`), so it imports nothing of ours and nothing that is not needed.
Does not: starting, watching or restarting children; that is the supervisor's.

Why a process: a `kill -9` leaves no chance to clean up, and the run workers that the code server
started would outlive even a death signal sent by the kernel to the code server itself. Process
groups reach them all, on every POSIX system.

It reads commands from standard input, one a line:

    watch GROUP SIGNAL    stop this process group with this signal, should `up` vanish
    forget GROUP          it has been stopped

The end of the input means that `up` is gone: everything still watched gets its signal, and five
seconds later SIGKILL. After an orderly stop nothing is watched any more and it just leaves. It
also holds the lock on the data folder (an inherited file descriptor) until it is done, so that
the next `up` cannot meet half of the last one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable

PATIENCE_SECONDS = 5.0
POLL_SECONDS = 0.05


def signal_group(group: int, signum: int) -> bool:
    """Send `signum` to a process group; False when nobody is left in it.

    Signal 0 only asks. EPERM also means that nobody we could still stop is left: macOS answers it
    for a group of zombies.
    """
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def watched_at_the_end(lines: Iterable[str]) -> dict[int, int]:
    """The groups still watched when the input ends, with the signal each is to get."""
    watched: dict[int, int] = {}
    for line in lines:
        verb, group, *rest = line.split()
        if verb == "watch":
            watched[int(group)] = int(rest[0])
        else:
            watched.pop(int(group), None)
    return watched


def stop(watched: dict[int, int], *, patience: float = PATIENCE_SECONDS) -> None:
    """Ask every group to stop, wait until they are gone, and kill those which are not."""
    # The newest first: the daemon before the code server it talks to, the database last.
    for group, signum in reversed(watched.items()):
        signal_group(group, signum)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(signal_group(group, 0) for group in watched):
        # Nothing can be awaited here: these are not our children.
        time.sleep(POLL_SECONDS)
    for group in watched:
        signal_group(group, signal.SIGKILL)


def main() -> None:
    # The terminal's Ctrl-C is for `up`, which tells us when it is done by closing our input.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):
        stop(watched_at_the_end(sys.stdin))


if __name__ == "__main__":
    main()

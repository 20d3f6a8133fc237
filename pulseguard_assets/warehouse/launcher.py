"""Become a program that does not outlive PulseGuard. Run as a script, never imported.

Belongs here: the few system calls between `fork` and `exec` that `subprocess` cannot make safely
(`preexec_fn` may deadlock when other threads run). Only the standard library: this starts with
`python -I -S`. Does not: what is started (`embedded.py`, `running/supervisor.py`).

Arguments: the parent's pid, the signal to get should it die, the uid and gid to become (-1 keeps
ours), the program, its arguments.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Drop privileges, tie our life to the parent's, and become the program."""
    parent, signum, uid, gid = (int(number) for number in arguments[:4])
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After setuid, which would clear it.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if os.getppid() != parent:  # it died before we could ask to be told
            sys.exit("the process that wanted this one is gone")
    os.umask(0o077)
    os.execv(arguments[4], arguments[4:])  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(sys.argv[1:])

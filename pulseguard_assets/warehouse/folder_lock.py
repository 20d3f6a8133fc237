"""One PulseGuard to a data folder.

Belongs here: the lock, and the sentence that says who holds it. Does not: what is in the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType

LOCK_NAME = "pulseguard.lock"


class FolderInUse(RuntimeError):  # noqa: N818 - reads as what it says
    """Another process works in this data folder; the message names it and the way out."""


class FolderLock:
    """An exclusive `flock` on `<folder>/pulseguard.lock`, which holds the pid of its owner.

    The kernel frees it when the owner dies, however it dies, so there is no such thing as a stale
    lock. The file itself stays: removing it would let two owners lock two different files.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock, or fail at once. Taking it twice is harmless.

        Raises:
            FolderInUse: somebody else holds it.
            OSError: the file cannot be made or locked.
        """
        if self.held:
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            who = f"process {owner}" if owner.isdigit() else "another process"
            raise FolderInUse(
                f"PulseGuard is already running in {self.path.parent} ({who}). Stop it first, or "
                "give this one a folder of its own with PULSEGUARD_DATA_DIR."
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        # Only to be read by people; the lock is held without it. A full disk has no room for it.
        with contextlib.suppress(OSError):
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back. Harmless when it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

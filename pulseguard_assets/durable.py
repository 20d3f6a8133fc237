"""Files that are whole after a power cut: the old content or the new one, under one name.

Belongs here: the order of writing, syncing and renaming. Does not: what is written.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(file: Path, text: str) -> None:
    """Replace a file's content; when this returns, it is on the disk.

    Raises:
        OSError: it cannot be written; the old content is as it was.
    """
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text(text, "utf-8")
    rename_durably(fresh, file, content=fresh)


def rename_durably(old: Path, new: Path, *, content: Path) -> None:
    """Rename a file or a folder once `content`, itself or what was last written in it, is on disk.

    A file system may keep the new name and lose what was written, or the other way round.
    """
    _sync(content)
    old.replace(new)
    _sync(new.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

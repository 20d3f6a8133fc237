"""A small filesystem, and how it gets full. Only root can mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """Mount a filesystem of its own at `place`; the test is skipped where that cannot be done."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a filesystem")
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0711", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Inside, nothing fits on the disk any more."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    try:
        yield
    finally:
        filler.unlink()


def make_said(connection: psycopg.Connection) -> None:
    """A table for `write_until_it_ends`, with a first page that has room for more."""
    connection.execute("CREATE TABLE said AS SELECT 0 AS number")


def write_until_it_ends(connection: psycopg.Connection) -> list[int]:
    """Store numbers until the server ends, since its journal has no room. Those it acknowledged."""
    acknowledged, number = [0], 0
    while not connection.broken:
        number += 1
        with suppress(psycopg.Error):
            connection.execute("INSERT INTO said VALUES (%s)", (number,))
            acknowledged.append(number)
        with suppress(psycopg.Error):
            # Half a megabyte for the journal, which has to begin a new file soon.
            connection.execute("SELECT pg_logical_emit_message(true, '', repeat('x', 500000))")
    return acknowledged


def said(connection: psycopg.Connection) -> list[int]:
    """The numbers that are stored."""
    return [row[0] for row in connection.execute("SELECT number FROM said ORDER BY 1").fetchall()]

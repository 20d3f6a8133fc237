"""Every test of this folder that uses `postgres` runs on each PostgreSQL of this machine.

The embedded one always; Debian's where it is installed, run as a private server of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("1[5-8]"))
SERVERS: dict[str, Path | None] = {
    "embedded-18": None,
    **{f"debian-{path.name}": path for path in DEBIAN if (path / "bin" / "postgres").exists()},
}


@pytest.fixture(scope="session", params=list(SERVERS))
def postgres(
    request: pytest.FixtureRequest, run_server: Callable[..., AbstractContextManager[Any]]
) -> Iterator[Any]:
    """One server after the other."""
    with run_server(request.param, SERVERS[request.param]) as server:
        yield server

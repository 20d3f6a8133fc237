"""One database for all properties: emptied before each stream, for to make one takes longer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def stream_database(postgres: Any) -> Iterator[str]:
    """The URL of a migrated database that only one test at a time uses."""
    with postgres.new_database(postgres.migrated_template()) as dsn:
        yield dsn

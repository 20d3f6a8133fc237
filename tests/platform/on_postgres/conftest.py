"""Dagster's tables beside the product's, where `pulseguard up` puts them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from watching_support import instance_on


@pytest.fixture
def database(postgres: Any, database_with_dagster: str) -> Iterator[str]:
    """A database with the product's tables and Dagster's."""
    with postgres.new_database(database_with_dagster) as dsn:
        yield dsn


@pytest.fixture
def instance(database: str) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance on `database`."""
    with instance_on(database) as instance:
        yield instance

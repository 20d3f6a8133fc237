"""How a single row comes out of the warehouse.

Belongs here: the one way to do it. Does not: what any table means, nor rows by the thousand, which
go in by `copying.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import Connection, sql


def one_row(
    connection: Connection,
    statement: str | sql.SQL | sql.Composed,
    parameters: Sequence[Any] | Mapping[str, Any] = (),
) -> Any:
    """The single row, as a tuple, of a statement that always returns one.

    Raises:
        psycopg.Error: the statement failed.
        LookupError: it returned no row, so it is not such a statement.
    """
    row = connection.execute(statement, parameters).fetchone()
    if row is None:
        raise LookupError(f"No row from: {statement!r}")
    return row

"""How long rows are kept: the settings' periods into `retention_policy`.

Belongs here: that. Does not: deleting, which `sql/` does, with its proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from psycopg import Connection


def set_retention(connection: Connection, keep: Mapping[str, timedelta]) -> None:
    """Put periods in force: table name -> how long its rows are kept.

    Tables that are not named keep the period they have, which somebody may have lengthened in SQL.

    Raises:
        psycopg.errors.CheckViolation: a period is shorter than its rollup needs.
    """
    with connection.transaction():
        for table, period in keep.items():
            connection.execute(
                "UPDATE public.retention_policy SET keep = %s WHERE table_name = %s",
                (period, table),
            )

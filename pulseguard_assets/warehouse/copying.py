"""How rows travel into the warehouse: a polars frame by COPY.

Belongs here: the one way to do it. Does not: what any table means. Apart from `statements.py`,
because whoever only asks for a row need not load polars.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl
from psycopg import Connection, sql

# No digits of a second that are all zero, and the shortest name of UTC: PostgreSQL takes as long to
# read a time as a price, and a tenth of that for a zone in digits.
_UTC = "%Y-%m-%d %H:%M:%S%.fZ"


def copy_frame(connection: Connection, table: sql.Identifier, frame: pl.DataFrame) -> None:
    """COPY `frame`, whose times are UTC, into `table`, whose columns are named as the frame's.

    Floats travel in their shortest decimal form, which is the same number; nulls and empty texts
    stay different.

    Raises:
        psycopg.Error: PostgreSQL refuses a row; then none of them is kept.
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
        table,
        sql.SQL(", ").join(map(sql.Identifier, frame.columns)),
    )
    text = _same_times_as_text(frame).write_csv(include_header=False, datetime_format=_UTC)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(text.encode())


def _same_times_as_text(frame: pl.DataFrame) -> pl.DataFrame:
    """A time that all rows share is spelled once: per row it takes longer than all the prices."""
    texts = [
        pl.lit(f"{first.replace(tzinfo=None).isoformat(' ')}Z").alias(name)
        for name, kind in frame.schema.items()
        if isinstance(kind, pl.Datetime)
        and isinstance(first := frame[name].min(), datetime)
        and first == frame[name].max()
        and frame[name].null_count() == 0
    ]
    return frame.with_columns(texts) if texts else frame

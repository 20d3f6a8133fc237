"""Brings a database to the schema of this version: applies `sql/NNN_*.sql`, once and in order.

Belongs here: which files are due, and applying them safely. Does not: what they say.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg
from psycopg import errors, generators, pq, sql

from pulseguard_assets.resources import shipped
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.statements import one_row

_LOCK = 0x50554C5347  # any constant, different from the other locks of this package
_FILE_NAME = re.compile(r"(?P<number>\d{3})_[a-z0-9_]+\.sql")

# The seed's table under the seed's name; the checksum is ours. 001 comments on them.
_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version VARCHAR(255) PRIMARY KEY,
    applied_at TIMESTAMPTZ DEFAULT NOW()
);
ALTER TABLE schema_migrations ADD COLUMN IF NOT EXISTS checksum TEXT;
"""
_LEDGER_IS_WHOLE = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('public.schema_migrations')
               AND attname = 'checksum' AND NOT attisdropped)
"""

# Whose the tables are, if that is somebody else than who is connected.
_OTHER_OWNER = """
SELECT pg_get_userbyid(relowner) FROM pg_class
WHERE oid = 'public.schema_migrations'::regclass AND pg_get_userbyid(relowner) <> current_user
"""
# What a file may have changed for its session must not reach the next one. 0: wait without end.
_CLEAN_SESSION = """
RESET ALL;
SET TIME ZONE 'UTC';
SET search_path = public;
SET client_min_messages = warning;
SET lock_timeout = 0;
"""

# A migration in line for a table has everybody else wait behind it, and nothing on the screen.
_PATIENCE = timedelta(minutes=1)
_IN_USE = (
    "Somebody else is using it: a backup that runs, or a transaction left open; SELECT * FROM "
    "pg_stat_activity shows who. Start again when that has ended."
)


class MigrationError(RuntimeError):
    """The database cannot be brought to this version; the message names the file."""


@dataclass(frozen=True)
class Migration:
    """One file of `sql/`."""

    path: Path
    text: str

    @property
    def version(self) -> str:
        """The name under which it is recorded: `001_initial_schema`."""
        return self.path.stem

    @property
    def checksum(self) -> str:
        """SHA-256 of its text, with line ends as Unix writes them."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


def migrate(dsn: str, *, sql_dir: Path | None = None, patience: timedelta = _PATIENCE) -> list[str]:
    """Apply the migrations that the database has not seen, each in a transaction of its own.

    Any number of starters may do so at once: one works, the others wait and find nothing to do. A
    database that is up to date is only read, so a backup under way does not stop a start.

    Args:
        dsn: the database.
        sql_dir: the folder of the files; default: those of this version.
        patience: how long to wait for a table that somebody else is using.

    Returns:
        The versions applied by this call, in order; empty when the database was up to date.

    Raises:
        MigrationError: the files are not 001, 002, ...; an applied one was edited or is missing;
            or one fails or cannot have a table, and then nothing of it is kept while those before
            it stay.
        DatabaseUnavailable, UnsupportedPostgres: see `connect`.
    """
    migrations = read_migrations(shipped("sql") if sql_dir is None else sql_dir)
    with connect(dsn, application_name="pulseguard migrate") as connection:
        connection.execute(_CLEAN_SESSION)
        # Held by the session, not by a transaction: it spans the transactions of all files, and
        # ends with the connection. Another starter at work may take as long as it takes.
        connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        try:
            return _migrate(connection, migrations, patience)
        except errors.LockNotAvailable as error:
            raise MigrationError(
                f"The table schema_migrations was not to be had for {patience.total_seconds():g} "
                f"seconds. {_IN_USE}"
            ) from error
        except errors.InsufficientPrivilege as error:
            raise MigrationError(
                f"The login {connection.info.user} may not bring the database up to date: "
                f"{error.diag.message_primary}. Run `pulseguard migrate` once with a login that "
                "may: a member of pulseguard_owner, or whoever owns the database."
            ) from error


def _migrate(
    connection: psycopg.Connection, migrations: list[Migration], patience: timedelta
) -> list[str]:
    _clean_session(connection, patience)
    if not one_row(connection, _LEDGER_IS_WHOLE)[0]:
        with connection.transaction():
            connection.execute(_LEDGER)
    due = _due(migrations, _applied(connection))
    if due:
        _become_owner(connection)
    for migration in due:
        _clean_session(connection, patience)
        _apply(connection, migration)
    return [migration.version for migration in due]


def _become_owner(connection: psycopg.Connection) -> None:
    """What is made belongs to whom the tables belong to already, whoever of them is connected."""
    owner = connection.execute(_OTHER_OWNER).fetchone()
    if owner is not None:
        # Stays through RESET ALL, until the connection ends.
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(owner[0])))


def _clean_session(connection: psycopg.Connection, patience: timedelta) -> None:
    connection.execute(_CLEAN_SESSION)
    milliseconds = str(max(1, round(patience.total_seconds() * 1000)))
    connection.execute("SELECT set_config('lock_timeout', %s, false)", (milliseconds,))


def read_migrations(sql_dir: Path) -> list[Migration]:
    """Read the files of a folder, in the order of their numbers.

    Raises:
        MigrationError: there are none, or a name or number is not as it must be.
    """
    paths = sorted(sql_dir.glob("*.sql"))
    if not paths:
        raise MigrationError(f"There are no migrations in {sql_dir}.")
    for number, path in enumerate(paths, start=1):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path.name}: call it like 007_lower_case_words.sql.")
        if int(match["number"]) != number:
            raise MigrationError(
                f"{path.name}: this is where number {number:03} belongs. Number the migrations "
                "001, 002, ... without a gap, each number once."
            )
    return [Migration(path, _read(path)) for path in paths]


def _read(path: Path) -> str:
    try:
        # Universal newlines: a checkout with other line ends is not another migration.
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise MigrationError(f"{path.name}: not UTF-8 ({error.reason}).") from None


def _applied(connection: psycopg.Connection) -> dict[str, str | None]:
    rows = connection.execute("SELECT version, checksum FROM schema_migrations ORDER BY version")
    return dict(rows.fetchall())


def _due(migrations: list[Migration], applied: dict[str, str | None]) -> list[Migration]:
    """Return the migrations not applied yet, after checking those that were."""
    missing = sorted(set(applied) - {migration.version for migration in migrations})
    if missing:
        raise MigrationError(
            f"The database has seen {missing[0]}.sql, which this version of PulseGuard does not "
            "have. The database is of a newer version: install that, or restore the file."
        )
    for migration in migrations:
        recorded = applied.get(migration.version, migration.checksum)
        if recorded is None:
            raise MigrationError(
                f"{migration.path.name} is recorded in schema_migrations without a checksum, so "
                "it was not applied by PulseGuard, and what this database holds is unknown. "
                "Name an empty database in PULSEGUARD_DATABASE_URL."
            )
        if recorded != migration.checksum:
            raise MigrationError(
                f"{migration.path.name} was edited after it was applied. Put it back as it was, "
                "and write the change as a new migration."
            )
    return [migration for migration in migrations if migration.version not in applied]


def _apply(connection: psycopg.Connection, migration: Migration) -> None:
    with connection.transaction():
        before = _transaction_id(connection)
        _run(connection, migration)
        if connection.info.transaction_status != pq.TransactionStatus.INTRANS or (
            before != _transaction_id(connection)
        ):
            raise MigrationError(
                f"{migration.path.name} ends the transaction it is applied in. Take its BEGIN, "
                "COMMIT or ROLLBACK out; then restore the database, which may hold a part of it."
            )
        connection.execute("SET LOCAL search_path = public")
        # In the same transaction: at no moment may anybody do anything with what was made.
        if one_row(connection, "SELECT to_regprocedure('public.grant_rights()')")[0] is not None:
            connection.execute("SELECT public.grant_rights()")
        connection.execute(
            "INSERT INTO schema_migrations (version, checksum) VALUES (%s, %s)",
            (migration.version, migration.checksum),
        )


def _transaction_id(connection: psycopg.Connection) -> str:
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    return str(row[0])


def _run(connection: psycopg.Connection, migration: Migration) -> None:
    """Send the whole file as one query of many statements, which PostgreSQL splits itself.

    Below `Connection.execute`, which does not tell how many statements had succeeded; without
    that an error that carries no position could not be given a line.
    """
    connection.pgconn.send_query(migration.text.encode("utf-8"))
    results = connection.wait(generators.execute(connection.pgconn))
    for done, result in enumerate(results):
        if result.status in (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT):
            connection.close()  # it waits for data that nobody has
            raise MigrationError(
                f"{migration.path.name}: COPY FROM STDIN and TO STDOUT have no client here. Use "
                "INSERT. Nothing of this file was kept."
            )
        if result.status == pq.ExecStatus.FATAL_ERROR:
            error = errors.error_from_result(result, encoding="utf-8")
            said = _failure(migration, error.diag, done)
            if isinstance(error, errors.LockNotAvailable):
                said += f"\nA table that it changes was not to be had. {_IN_USE}"
            raise MigrationError(said) from error


def _failure(migration: Migration, diag: errors.Diagnostic, done: int) -> str:
    if diag.statement_position:
        before = migration.text[: int(diag.statement_position) - 1]
    else:
        before = migration.text[: _statement_start(migration.text, done)]
    line = before.count("\n") + 1
    parts = [f"{migration.path.name}, line {line}: {diag.message_primary}"]
    parts += [f"Detail: {diag.message_detail}"] if diag.message_detail else []
    parts += [f"Hint: {diag.message_hint}"] if diag.message_hint else []
    parts += [f"Context: {diag.context}"] if diag.context else []
    return "\n".join([*parts, "Nothing of this file was kept."])


# Enough of SQL's grammar to find where statements begin. Only messages rest on it.
_TOKEN = re.compile(
    r"""
      (?P<skip> \s+ | --[^\n]* | /\*.*?\*/ )
    | (?P<end> ; )
    | \$(?P<tag>(?:[^\W\d]\w*)?)\$ .*? \$(?P=tag)\$
    | \b[eE]'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | \bBEGIN\s+ATOMIC\b .*? \bEND\s*(?=;)
    | \w+
    | .
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


def _statement_starts(text: str) -> Iterator[int]:
    inside = False
    for token in _TOKEN.finditer(text):
        if token["end"]:
            inside = False
        elif not token["skip"] and not inside:
            inside = True
            yield token.start()


def _statement_start(text: str, number: int) -> int:
    """Return the position of statement `number`, counted from 0; of the last if there are fewer."""
    starts = list(_statement_starts(text)) or [0]
    return starts[min(number, len(starts) - 1)]

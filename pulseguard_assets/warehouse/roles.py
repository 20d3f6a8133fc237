"""The three roles by which people share a database: made on the server, and taken in use.

Belongs here: making roles, and what to say when that is not allowed. Does not: what each of them
may do (`sql/018_roles.sql`).

Roles belong to the whole server, other databases included, and on managed ones not everybody may
make them. So no migration does: an administrator asks for them, by `pulseguard roles`.
"""

from __future__ import annotations

from datetime import timedelta

import psycopg
from psycopg import errors, sql

from pulseguard_assets.warehouse.connection import WRITER_ROLE, connect
from pulseguard_assets.warehouse.migrations import migrate

OWNER_ROLE = "pulseguard_owner"
READER_ROLE = "pulseguard_reader"
ROLES = {
    OWNER_ROLE: "PulseGuard: owns the tables and brings them up to date",
    WRITER_ROLE: "PulseGuard: collects prices, and keeps the tables of Dagster",
    READER_ROLE: "PulseGuard: reads tables and views",
}

_LOCK = 0x50554C5352  # any constant, different from the other locks of this package
_PATIENCE = timedelta(minutes=1)


class RolesRefused(RuntimeError):  # noqa: N818 - reads as what it says
    """The roles cannot be made or taken in use; the message says who can, and how."""


def install_roles(dsn: str) -> list[str]:
    """Make the roles that the server lacks, and take them in use in this database.

    Brings the database up to date first. Any number may do so at once, in one database or in
    several of a server; repeated, it changes nothing.

    Returns:
        The roles that were made; those that other databases use already are not among them.

    Raises:
        RolesRefused: this login may not, or somebody else's transaction holds a table.
        MigrationError, DatabaseUnavailable, UnsupportedPostgres: see `migrate`.
    """
    migrate(dsn)
    with connect(dsn, application_name="pulseguard roles", lock_timeout=_PATIENCE) as connection:
        made = [role for role in ROLES if _made(connection, role)]
        try:
            with connection.transaction():
                # Two who grant the same at once would meet in the catalog.
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                # Whoever gives something away must belong to whom it is given to.
                for role in (OWNER_ROLE, WRITER_ROLE):
                    _join(connection, role)
                connection.execute("SELECT public.use_roles()")
        except errors.LockNotAvailable as error:
            raise RolesRefused(
                f"A table was not to be had for {_PATIENCE.total_seconds():g} seconds, and nothing "
                "was changed: a backup runs, or a transaction was left open. Try again when it "
                "has ended."
            ) from error
        except (errors.InsufficientPrivilege, errors.InvalidGrantOperation) as error:
            raise RolesRefused(_refusal(connection, error)) from error
    return made


def _made(connection: psycopg.Connection, role: str) -> bool:
    """Whether the role was made now, and not by somebody before or at this moment."""
    if connection.execute("SELECT to_regrole(%s)", (role,)).fetchone() != (None,):
        return False
    name = sql.Identifier(role)
    try:
        with connection.transaction():
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(name))
            connection.execute(sql.SQL("COMMENT ON ROLE {} IS {}").format(name, ROLES[role]))
    except (errors.DuplicateObject, errors.UniqueViolation):
        return False
    except errors.InsufficientPrivilege as error:
        raise RolesRefused(_refusal(connection, error)) from error
    return True


def _join(connection: psycopg.Connection, role: str) -> None:
    """Become a member, unless one is one already; a superuser always is."""
    member = connection.execute("SELECT pg_has_role(%s, 'USAGE')", (role,)).fetchone()
    if member != (True,):
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))


def _refusal(connection: psycopg.Connection, error: psycopg.Error) -> str:
    user = connection.info.user
    known = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", ([*ROLES],))
    there = known.fetchall()
    roles = "".join(f"\n  CREATE ROLE {role} NOLOGIN;" for role in ROLES if (role,) not in there)
    said = ". ".join(filter(None, (error.diag.message_primary, error.diag.message_hint)))
    return (
        f"The login {user} cannot take the roles in use, and nothing was changed: {said}. It takes "
        "one that owns the database and its tables and may create roles. Where that is nobody, "
        f"have an administrator run this, and then `pulseguard roles` again:{roles}"
        f"\n  GRANT {OWNER_ROLE}, {WRITER_ROLE} TO {user};"
    )

"""Logins of a shared database, one for each role, and what PostgreSQL lets them do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from pulseguard_assets.warehouse.connection import connect

OWNER, WRITER, READER, STRANGER = "deployer", "collector", "analyst", "passer_by"
MEMBER_OF = {
    OWNER: "pulseguard_owner",
    WRITER: "pulseguard_writer",
    READER: "pulseguard_reader",
    STRANGER: None,
}


def as_login(dsn: str, login: str) -> str:
    """The same database for another login."""
    assert "pulseguard@" in dsn
    return dsn.replace("pulseguard@", f"{login}@")


@contextmanager
def logins(dsn: str) -> Iterator[None]:
    """The four logins, members of roles that are there; dropped with whatever they own in `dsn`."""
    with connect(dsn) as admin:
        for login, role in MEMBER_OF.items():
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(login)))
            if role is not None:
                admin.execute(
                    sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(login))
                )
    try:
        yield
    finally:
        with connect(dsn) as admin:
            for login in MEMBER_OF:
                admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(login)))
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(login)))


def drop_roles(dsn: str) -> None:
    """Drop the three roles of the server, which no other database may use."""
    with connect(dsn) as admin:
        for role in filter(None, MEMBER_OF.values()):
            known = admin.execute("SELECT to_regrole(%s)", (role,)).fetchone()
            if known != (None,):
                admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(role)))
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def refusal(connection: psycopg.Connection, statement: Any) -> str | None:
    """Why this login may not do that; None if it may. Whatever is done is undone.

    Other errors are none of permission: PostgreSQL asks for the right before it looks at a row.
    """
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        return str(error.diag.message_primary)
    except psycopg.Error:
        pass
    return None


def owners(dsn: str) -> dict[str, list[str]]:
    """By schema: whom tables, views, sequences and functions belong to."""
    with connect(dsn) as admin:
        return dict(
            admin.execute(
                "SELECT n.nspname, array_agg(DISTINCT pg_get_userbyid(owner)) FROM ("
                "SELECT relnamespace AS space, relowner AS owner FROM pg_class UNION ALL "
                "SELECT pronamespace, proowner FROM pg_proc) AS each "
                "JOIN pg_namespace n ON n.oid = each.space "
                "WHERE n.nspname IN ('public', 'dagster') GROUP BY 1"
            ).fetchall()
        )

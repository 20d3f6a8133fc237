"""`pulseguard roles`: the roles are made and taken in use, by whoever may and by nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from closes_support import Background, one
from psycopg import sql
from roles_support import (
    MEMBER_OF,
    as_login,
    drop_roles,
    owners,
)

from pulseguard_assets.warehouse.connection import connect, ensure_dagster_schema
from pulseguard_assets.warehouse.roles import ROLES, RolesRefused, install_roles


@pytest.fixture(autouse=True)
def no_roles(postgres: Any) -> Iterator[None]:
    """None of our roles on the server, whatever tests of other files leave, and none is left."""
    drop_roles(postgres.dsn)
    yield
    drop_roles(postgres.dsn)


@pytest.fixture
def tenant(postgres: Any) -> Iterator[None]:
    """The login `tenant`, that may nothing but log in; gone after its database and our roles."""
    with connect(postgres.dsn) as admin:
        admin.execute("CREATE ROLE tenant LOGIN")
        yield
        drop_roles(postgres.dsn)
        admin.execute("DROP ROLE tenant")


@pytest.fixture
def own_database(tenant: None, empty_database: str) -> str:
    """The URL by which `tenant` reaches a new database, which it owns."""
    with connect(empty_database) as admin:
        name = sql.Identifier(admin.info.dbname)
        admin.execute(sql.SQL("ALTER DATABASE {} OWNER TO tenant").format(name))
    return as_login(empty_database, "tenant")


def rights(dsn: str) -> list[Any]:
    """All rights on everything in public."""
    with connect(dsn) as admin:
        return admin.execute(
            "SELECT oid::regclass::text, relacl::text FROM pg_class "
            "WHERE relnamespace = 'public'::regnamespace UNION ALL "
            "SELECT oid::regprocedure::text, proacl::text FROM pg_proc "
            "WHERE pronamespace = 'public'::regnamespace ORDER BY 1"
        ).fetchall()


def test_without_roles_nobody_but_the_owner_may_do_anything(database: str) -> None:
    with connect(database) as admin:
        admin.execute("CREATE ROLE passer_by LOGIN")
        try:
            with connect(as_login(database, "passer_by")) as stranger:
                for statement in ("SELECT FROM minute_close", "SELECT cleanup_old_data()"):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        stranger.execute(statement)
        finally:
            admin.execute("DROP ROLE passer_by")


def test_it_migrates_makes_the_roles_hands_everything_over_and_changes_nothing_again(
    empty_database: str,
) -> None:
    assert install_roles(empty_database) == list(ROLES)
    assert owners(empty_database)["public"] == ["pulseguard_owner"]
    before = rights(empty_database)
    assert install_roles(empty_database) == []
    assert rights(empty_database) == before
    with connect(empty_database) as admin:
        able = admin.execute(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE 'pulseguard\\_%' AND (rolcanlogin "
            "OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)"
        ).fetchall()
    assert able == []


def test_what_dagster_made_before_goes_to_the_writers(database: str) -> None:
    ensure_dagster_schema(database)
    with connect(database) as admin:
        admin.execute("CREATE TABLE dagster.runs (id serial, body text)")
    install_roles(database)
    assert owners(database)["dagster"] == ["pulseguard_writer"]


def test_what_an_extension_made_in_public_is_left_alone(database: str) -> None:
    with connect(database) as admin:
        if not one(admin, "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'"):
            pytest.skip("this server has no extension to try")
        admin.execute("CREATE EXTENSION pg_trgm SCHEMA public")
        install_roles(database)
        assert one(
            admin, "SELECT has_function_privilege('public', 'similarity(text, text)', 'EXECUTE')"
        )


def test_two_databases_of_a_server_share_the_roles_though_both_ask_at_once(
    postgres: Any, database: str
) -> None:
    with postgres.new_database(postgres.migrated_template()) as other:
        both = [Background(lambda dsn=dsn: install_roles(dsn)) for dsn in (database, other) * 2]  # type: ignore[misc]
        made = [role for each in both for role in each.result(60)]
        assert sorted(made) == sorted(ROLES)
        for dsn in (database, other):
            assert owners(dsn)["public"] == ["pulseguard_owner"]


def test_a_public_schema_that_everybody_may_write_to_is_refused_with_what_to_run(
    database: str,
) -> None:
    with connect(database) as admin:
        admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        with pytest.raises(RolesRefused, match="REVOKE CREATE ON SCHEMA public FROM PUBLIC"):
            install_roles(database)
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    install_roles(database)


def test_whoever_owns_the_database_and_may_create_roles_needs_no_superuser(
    own_database: str, empty_database: str
) -> None:
    with connect(empty_database) as admin:
        admin.execute("ALTER ROLE tenant CREATEROLE")
    assert install_roles(own_database) == list(ROLES)
    assert install_roles(own_database) == []
    assert owners(empty_database)["public"] == ["pulseguard_owner"]
    with connect(own_database) as tenant:
        tenant.execute("CREATE ROLE analyst LOGIN")
        tenant.execute("GRANT pulseguard_reader TO analyst")
        tenant.execute("DROP ROLE analyst")


def test_whoever_may_not_is_told_what_an_administrator_has_to_run(
    own_database: str, empty_database: str
) -> None:
    with pytest.raises(RolesRefused) as refused:
        install_roles(own_database)
    told = str(refused.value)
    assert "The login tenant cannot take the roles in use" in told
    assert owners(empty_database)["public"] == ["tenant"], "it was brought up to date"

    # What it says to run is what it takes.
    with connect(empty_database) as admin:
        for line in told.splitlines()[1:]:
            admin.execute(line.encode())
        admin.execute("REVOKE pulseguard_owner FROM tenant")
        with pytest.raises(RolesRefused, match="GRANT pulseguard_owner") as refused:
            install_roles(own_database)
        assert "CREATE ROLE" not in str(refused.value), "they are there"
        admin.execute("GRANT pulseguard_owner TO tenant")
    assert install_roles(own_database) == []
    assert owners(empty_database)["public"] == ["pulseguard_owner"]


# --- the command line ---


def test_the_command_says_what_each_role_is_for_and_which_are_new(
    pulseguard: Callable[..., tuple[int, str]], database: str
) -> None:
    code, first = pulseguard(database, "roles")
    assert code == 0, first
    assert first.count("(made)") == len(MEMBER_OF) - 1 == len(ROLES)
    assert "pulseguard_reader (made): reads tables and views" in first
    code, again = pulseguard(database, "roles")
    assert (code, again.count("(known)")) == (0, len(ROLES))

"""What owner, writer, reader and anybody else may do: tried, statement by statement.

The objects come from the catalog, so that a new table, view or function is tried as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from closes_support import add_coins, clean_up, ensure, one, put, seen_at, utc
from psycopg import sql
from roles_support import (
    OWNER,
    READER,
    STRANGER,
    WRITER,
    as_login,
    logins,
    owners,
    refusal,
)

from pulseguard_assets.resources import shipped
from pulseguard_assets.running.database import DatabaseHold
from pulseguard_assets.running.instance import AlreadyRunning
from pulseguard_assets.timeframes import TIMEFRAMES
from pulseguard_assets.warehouse.connection import connect, dagster_url, ensure_dagster_schema
from pulseguard_assets.warehouse.migrations import MigrationError, migrate
from pulseguard_assets.warehouse.roles import install_roles
from pulseguard_assets.warehouse.upkeep import rebuild_indexes

NOON = utc(2026, 6, 24, 12)
CLOSES = [timeframe.table for timeframe in TIMEFRAMES]

# What a writer may do with a table: with one that is not named, the first.
OF_A_WRITER = {
    None: {"SELECT", "INSERT", "UPDATE"},
    "schema_migrations": {"SELECT"},
    "timeframes": {"SELECT"},
    "retention_audit": {"SELECT"},
    "retention_policy": {"SELECT"},
    "platform_purpose": {"SELECT", "INSERT"},
    "watch_list": {"SELECT", "INSERT", "UPDATE", "DELETE"},
}
STATEMENTS = {
    "SELECT": "SELECT FROM {table} LIMIT 1",
    "INSERT": "INSERT INTO {table} DEFAULT VALUES",
    "UPDATE": "UPDATE {table} SET {column} = {column} WHERE false",
    "DELETE": "DELETE FROM {table} WHERE false",
    "TRUNCATE": "TRUNCATE {table}",
    "ALTER": "ALTER TABLE {table} ADD COLUMN mine integer",
    "DROP": "DROP TABLE {table} CASCADE",
    "INDEX": "CREATE INDEX ON {table} ({column})",
    "TRIGGER": "CREATE TRIGGER mine BEFORE DELETE ON {table} EXECUTE FUNCTION stop_at_the_gate()",
    "COMMENT": "COMMENT ON TABLE {table} IS 'mine'",
    "OWN": "ALTER TABLE {table} OWNER TO CURRENT_USER",
}
# What only an owner is asked for: he may do all else too.
NOT_OF_AN_OWNER = {"OWN", "TRIGGER"}
# Run as the owner, whoever calls them.
DEFINERS = {"add_monthly_partition", "cleanup_old_data", "drop_old_partitions", "maintain_indexes"}
INTERNAL = {"grant_on", "grant_rights", "use_roles"}


@pytest.fixture(scope="module")
def prepared(postgres: Any) -> Iterator[str]:
    """The name of a database with roles in use, logins, a few closes and old partitions."""
    with postgres.new_database(postgres.migrated_template()) as dsn:
        install_roles(dsn)
        with connect(dsn) as admin:
            add_coins(admin, "bitcoin", "ether")
            ensure(admin, utc(2026, 2, 1), NOON)
            put(admin, [seen_at("bitcoin", NOON)])
            name = admin.info.dbname
        with logins(dsn):
            yield name


@pytest.fixture(scope="module")
def shared(postgres: Any, prepared: str) -> Iterator[str]:
    """The URL of one copy of `prepared`, for all tests that leave the objects alone."""
    with postgres.new_database(prepared) as dsn:
        yield dsn


@pytest.fixture
def in_use(postgres: Any, prepared: str) -> Iterator[str]:
    """The URL of a new copy of `prepared`."""
    with postgres.new_database(prepared) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def sessions(shared: str) -> Iterator[dict[str, psycopg.Connection]]:
    """A connection of each login, by its name."""
    with ExitStack() as stack:
        yield {
            login: stack.enter_context(connect(as_login(shared, login)))
            for login in (OWNER, WRITER, READER, STRANGER)
        }


@pytest.fixture
def admin(shared: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection, to look."""
    with connect(shared) as connection:
        yield connection


def relations(admin: psycopg.Connection, condition: str) -> list[tuple[str, str]]:
    """Names of relations in public, each with its first column that an UPDATE may name."""
    found = admin.execute(
        sql.SQL(
            "SELECT DISTINCT ON (c.relname) c.relname, a.attname FROM pg_class c "
            "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 "
            "AND a.attidentity = '' AND a.attgenerated = '' "
            "WHERE c.relnamespace = 'public'::regnamespace AND {} ORDER BY 1, a.attnum"
        ).format(sql.SQL(condition))  # type: ignore[arg-type]
    ).fetchall()
    assert found
    return found


def permitted(session: psycopg.Connection, table: str, column: str) -> set[str]:
    """The kinds of statements that a login may run on a table."""
    names = {"table": sql.Identifier(table), "column": sql.Identifier(column)}
    return {
        kind
        for kind, text in STATEMENTS.items()
        if refusal(session, sql.SQL(text).format(**names)) is None  # type: ignore[arg-type]
    }


def test_each_may_do_with_each_table_what_the_role_says_and_nothing_else(
    sessions: dict[str, psycopg.Connection], admin: psycopg.Connection
) -> None:
    tables = relations(admin, "c.relkind IN ('r', 'p') AND NOT c.relispartition")
    assert set(CLOSES) | set(filter(None, OF_A_WRITER)) <= {name for name, _ in tables}
    for table, column in tables:
        found = {login: permitted(session, table, column) for login, session in sessions.items()}
        assert found[STRANGER] == set(), table
        assert found[READER] == {"SELECT"}, table
        assert found[WRITER] == OF_A_WRITER.get(table, OF_A_WRITER[None]), table
        assert found[OWNER] >= set(STATEMENTS) - NOT_OF_AN_OWNER, table


def test_partitions_are_reached_through_their_table_only(
    sessions: dict[str, psycopg.Connection], admin: psycopg.Connection
) -> None:
    sessions[WRITER].execute("SELECT ensure_partitions(%s, %s)", (utc(2031, 1, 1),) * 2)
    partitions = relations(
        admin, "c.relispartition AND c.relkind = 'r' AND c.relname ~ '2026m06|2031m01'"
    )
    assert len(partitions) >= 2 * len(CLOSES)
    for table, column in partitions:
        for login in (WRITER, READER, STRANGER):
            assert permitted(sessions[login], table, column) == set(), (table, login)
        assert "DROP" in permitted(sessions[OWNER], table, column), table


def test_views_are_for_readers_and_writers(
    sessions: dict[str, psycopg.Connection], admin: psycopg.Connection
) -> None:
    for view, _ in relations(admin, "c.relkind = 'v'"):
        statement = sql.SQL("SELECT * FROM {}").format(sql.Identifier(view))
        for login in (OWNER, WRITER, READER):
            assert refusal(sessions[login], statement) is None, (view, login)
        assert refusal(sessions[STRANGER], statement) == f"permission denied for view {view}"


def functions(admin: psycopg.Connection) -> list[tuple[str, sql.Composed, bool]]:
    """Name, a call without any argument's value, and whether it promises not to write.

    Its arguments are subqueries: a strict function of a constant NULL is never called.
    """
    found = admin.execute(
        "SELECT p.proname, ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) AS t), "
        "p.provolatile <> 'v' AND NOT p.prosecdef FROM pg_proc p "
        "WHERE p.pronamespace = 'public'::regnamespace "
        "AND p.prorettype <> 'trigger'::regtype ORDER BY 1"
    ).fetchall()
    assert len(found) > 60
    return [
        (
            name,
            sql.SQL("SELECT {}({})").format(
                sql.Identifier("public", name),
                sql.SQL(", ").join(sql.SQL(f"(SELECT NULL::{kind})") for kind in kinds),
            ),
            reads,
        )
        for name, kinds, reads in found
    ]


def test_a_reader_may_call_what_only_reads_and_a_stranger_nothing(
    sessions: dict[str, psycopg.Connection], admin: psycopg.Connection
) -> None:
    for name, call, reads in functions(admin):
        denied = f"permission denied for function {name}"
        assert refusal(sessions[STRANGER], call) == denied
        assert (refusal(sessions[READER], call) == denied) is not reads, name
        assert (refusal(sessions[WRITER], call) == denied) is (name in INTERNAL), name
        assert refusal(sessions[OWNER], call) != denied, name


def test_nobody_but_the_owner_makes_objects_among_ours_and_nobody_becomes_another(
    sessions: dict[str, psycopg.Connection],
) -> None:
    for login in (WRITER, READER, STRANGER):
        for statement in (
            "CREATE TABLE public.mine (x integer)",
            "CREATE FUNCTION public.date_trunc(text, timestamptz, unknown) RETURNS timestamptz "
            "LANGUAGE sql AS 'SELECT $2'",
            "CREATE SCHEMA mine",
            "SET ROLE pulseguard_owner",
            "GRANT pulseguard_owner TO CURRENT_USER",
        ):
            assert refusal(sessions[login], statement) is not None, (login, statement)
    assert refusal(sessions[READER], "SET ROLE pulseguard_writer") is not None
    assert refusal(sessions[OWNER], "CREATE TABLE public.mine (x integer)") is None


def test_dagsters_schema_is_the_writers_and_closed_to_all_others(
    sessions: dict[str, psycopg.Connection],
) -> None:
    make = "CREATE TABLE dagster.mine (x integer)"
    assert refusal(sessions[WRITER], make) is None
    for login in (READER, STRANGER, OWNER):
        assert refusal(sessions[login], make) == "permission denied for schema dagster", login


def test_what_runs_as_the_owner_is_known_and_looks_up_names_among_ours_first(
    admin: psycopg.Connection,
) -> None:
    found = admin.execute(
        "SELECT proname, proowner::regrole::text, "
        "proconfig @> ARRAY['search_path=public, pg_temp'], "
        "has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc "
        "WHERE pronamespace = 'public'::regnamespace AND prosecdef ORDER BY 1"
    ).fetchall()
    assert found == [(name, "pulseguard_owner", True, False) for name in sorted(DEFINERS)]


# --- what runs as the owner does no more than it is for ---


def test_a_writer_deletes_a_close_only_through_the_cleanup_which_proves_it(
    sessions: dict[str, psycopg.Connection], admin: psycopg.Connection
) -> None:
    writer = sessions[WRITER]
    later = NOON.replace(hour=15)
    put(writer, [seen_at("ether", NOON), seen_at("ether", later)])
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute("DELETE FROM minute_close WHERE coin_id = 'ether'")
    deleted = clean_up(writer, later)
    assert deleted["minute_close"] >= 1
    left = "SELECT min(minute_ts) FROM minute_close WHERE coin_id = 'ether'"
    assert one(admin, left) == later
    assert one(admin, "SELECT count(*) FROM hourly_close WHERE coin_id = 'ether'") == 2
    assert one(admin, "SELECT count(*) FROM retention_audit") >= 1


def test_a_writer_drops_old_months_and_no_other_table(
    sessions: dict[str, psycopg.Connection], admin: psycopg.Connection
) -> None:
    writer = sessions[WRITER]
    assert one(writer, "SELECT drop_old_partitions('minute_close', 0, %s)", (NOON,)) >= 1
    assert one(admin, "SELECT to_regclass('minute_close_y2026m02')") is None
    for table in ("collection_status", "minute_close_y2026m06", "no_such; DROP TABLE incidents"):
        for statement in (
            "SELECT drop_old_partitions(%s, 0, now())",
            "SELECT add_monthly_partition(%s, now())",
        ):
            with pytest.raises(psycopg.errors.RaiseException, match="not one of the close tables"):
                writer.execute(statement, (table,))


def test_a_writer_may_lengthen_retention_but_not_point_it_at_another_table(
    sessions: dict[str, psycopg.Connection],
) -> None:
    writer = sessions[WRITER]
    keep = "UPDATE retention_policy SET keep = '31 days' WHERE table_name = 'collection_status'"
    assert refusal(writer, keep) is None
    for column in ("table_name", "age_column"):
        hostile = sql.SQL("UPDATE retention_policy SET {} = 'coin_priorities'").format(
            sql.Identifier(column)
        )
        assert refusal(writer, hostile) is not None, column


def test_a_writers_own_temporary_tables_do_not_stand_in_for_ours(
    shared: str, admin: psycopg.Connection
) -> None:
    before = one(admin, "SELECT count(*) FROM coin_priorities")
    with connect(as_login(shared, WRITER)) as writer:
        writer.execute(
            "CREATE TEMPORARY TABLE retention_policy AS "
            "SELECT 'coin_priorities' AS table_name, 'created_at' AS age_column, "
            "'-100 years'::interval AS keep"
        )
        writer.execute(
            "CREATE TEMPORARY TABLE timeframes AS SELECT * FROM public.timeframes WITH NO DATA"
        )
        assert set(clean_up(writer, NOON)) >= {"minute_close", "collection_status"}
    assert one(admin, "SELECT count(*) FROM coin_priorities") == before


def test_a_writer_rebuilds_a_bloated_index_or_says_who_can(
    shared: str, admin: psycopg.Connection
) -> None:
    admin.execute(
        "INSERT INTO collection_status (collection_type, start_time) "
        "SELECT 'manual', now() FROM generate_series(1, 20000)"
    )
    admin.execute("DELETE FROM collection_status WHERE id > 10")
    admin.execute("VACUUM ANALYZE collection_status")
    with connect(as_login(shared, WRITER)) as writer:
        done = rebuild_indexes(writer, worth_bytes=100_000)
    if admin.info.server_version >= 170_000:
        assert "collection_status_pkey" in done.rebuilt
        assert done.failed == {}
    else:
        assert done.rebuilt == {}
        said = done.failed["collection_status_pkey"]
        assert "Have a member of pulseguard_owner run: REINDEX INDEX CONCURRENTLY" in said


# --- migrations with roles in use ---


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The folder of the migrations, to be continued."""
    return Path(shutil.copytree(shipped("sql"), tmp_path / "sql"))


@pytest.fixture
def newer(older: Path) -> Path:
    """The same with one more, which makes a table, a view and two functions."""
    number = len(list(older.glob("*.sql"))) + 1
    (older / f"{number:03}_more.sql").write_text(
        "CREATE TABLE more (id BIGINT GENERATED ALWAYS AS IDENTITY, what TEXT);\n"
        "CREATE VIEW less AS SELECT what FROM more;\n"
        "CREATE FUNCTION looks() RETURNS BIGINT LANGUAGE sql STABLE\n"
        "AS 'SELECT count(*) FROM more';\n"
        "CREATE FUNCTION does() RETURNS VOID LANGUAGE sql\n"
        "AS 'INSERT INTO more (what) VALUES (1)';\n"
    )
    return older


def test_what_a_later_migration_makes_belongs_to_the_owner_and_has_its_rights(
    in_use: str, newer: Path
) -> None:
    assert migrate(as_login(in_use, OWNER), sql_dir=newer) == [max(newer.glob("*.sql")).stem]
    assert owners(in_use)["public"] == ["pulseguard_owner"]
    with connect(as_login(in_use, WRITER)) as writer, connect(as_login(in_use, READER)) as reader:
        writer.execute("SELECT does()")
        for session in (writer, reader):
            assert one(session, "SELECT looks()") == one(session, "SELECT count(*) FROM less") == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("SELECT does()")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            writer.execute("DELETE FROM more")


def test_a_superuser_who_migrates_leaves_nothing_of_his_own(in_use: str, newer: Path) -> None:
    migrate(in_use, sql_dir=newer)
    assert owners(in_use)["public"] == ["pulseguard_owner"]


@pytest.mark.parametrize("login", [WRITER, READER])
def test_who_owns_nothing_sees_that_nothing_is_to_do_and_else_is_told_who_can(
    in_use: str, newer: Path, login: str
) -> None:
    dsn = as_login(in_use, login)
    assert migrate(dsn) == []
    with pytest.raises(MigrationError, match=f"{login} may not .*member of pulseguard_owner"):
        migrate(dsn, sql_dir=newer)
    assert migrate(dsn) == []


@pytest.mark.parametrize("database_url", ["in_use", "empty_database"])
def test_a_stranger_is_told_the_same_whether_there_are_tables_or_not(
    in_use: str, empty_database: str, database_url: str
) -> None:
    dsn = {"in_use": in_use, "empty_database": empty_database}[database_url]
    with pytest.raises(MigrationError, match="The login passer_by may not bring the database"):
        migrate(as_login(dsn, STRANGER))


# --- Dagster, and the platform's hold ---


def test_dagsters_tables_belong_to_the_writers_whoever_of_them_ran_it_first(in_use: str) -> None:
    role = ensure_dagster_schema(as_login(in_use, WRITER))
    assert role == "pulseguard_writer"
    url = dagster_url(as_login(in_use, WRITER), role=role)
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE runs (id int)"))
        assert connection.execute(sqlalchemy.text("SHOW TimeZone")).scalar() == "UTC"
    engine.dispose()
    assert owners(in_use)["dagster"] == ["pulseguard_writer"]


@pytest.mark.parametrize("login", [OWNER, READER, None])
def test_dagster_acts_as_nobody_else_for_a_login_that_is_no_writer(
    in_use: str, empty_database: str, login: str | None
) -> None:
    if login is None:
        assert ensure_dagster_schema(empty_database) is None
        assert ensure_dagster_schema(empty_database) is None
    else:
        assert ensure_dagster_schema(as_login(in_use, login)) is None


def test_a_second_platform_of_another_login_is_told_who_is_there(in_use: str) -> None:
    # Of another login's session PostgreSQL shows the name, and not since when it is there.
    with (
        DatabaseHold(as_login(in_use, WRITER)),
        pytest.raises(AlreadyRunning, match=r"\(pulseguard up, process \d+ on [^,]+\)"),
    ):
        DatabaseHold(as_login(in_use, OWNER)).acquire()


def test_a_reader_who_wants_to_collect_is_told_what_that_takes(
    pulseguard: Callable[..., tuple[int, str]], in_use: str
) -> None:
    code, told = pulseguard(as_login(in_use, READER), "collect", "--once")
    assert code == 2
    assert "Traceback" not in told
    assert "member of pulseguard_writer" in told

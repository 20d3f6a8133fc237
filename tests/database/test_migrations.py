"""The runner of migrations, on files written for the test, and the shipped files once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from closes_support import Background
from psycopg.rows import scalar_row

from pulseguard_assets.resources import shipped
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.migrations import (
    _LOCK,
    MigrationError,
    migrate,
    read_migrations,
)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files into one folder and return it: `write(a_001="...")` makes `001_a.sql`."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            words, _, number = name.rpartition("_")
            (tmp_path / f"{number}_{words}.sql").write_text(text, "utf-8")
        return tmp_path

    return write


def ask(dsn: str, question: str) -> list[object]:
    with connect(dsn) as connection:
        return connection.cursor(row_factory=scalar_row).execute(question).fetchall()


def test_files_are_applied_in_order_and_recorded_once(empty_database: str, write: Write) -> None:
    sql_dir = write(
        table_001="CREATE TABLE t (n int); INSERT INTO t VALUES (1);",
        more_002="INSERT INTO t SELECT 2 FROM t;",
    )
    assert migrate(empty_database, sql_dir=sql_dir) == ["001_table", "002_more"]
    assert migrate(empty_database, sql_dir=sql_dir) == []
    write(last_003="INSERT INTO t VALUES (3)")  # without a semicolon at the end
    assert migrate(empty_database, sql_dir=sql_dir) == ["003_last"]
    assert ask(empty_database, "SELECT n FROM t ORDER BY n") == [1, 2, 3]
    recorded = "SELECT version FROM schema_migrations WHERE applied_at <= now() ORDER BY version"
    assert ask(empty_database, recorded) == ["001_table", "002_more", "003_last"]


def test_functions_and_percent_signs_are_sent_as_they_are(
    empty_database: str, write: Write
) -> None:
    sql_dir = write(
        function_001="""
        CREATE FUNCTION f(n int) RETURNS int LANGUAGE plpgsql AS $$
        BEGIN
            RETURN n % 3; -- %s stays
        END;
        $$;
        CREATE TABLE t AS SELECT f(5) AS n;
        """
    )
    migrate(empty_database, sql_dir=sql_dir)
    assert ask(empty_database, "SELECT n FROM t") == [2]


def test_the_seeds_own_ledger_is_kept_and_given_its_column(
    empty_database: str, write: Write
) -> None:
    with connect(empty_database) as connection:
        connection.execute(
            "CREATE TABLE schema_migrations "
            "(version VARCHAR(255) PRIMARY KEY, applied_at TIMESTAMPTZ DEFAULT NOW())"
        )
    migrate(empty_database, sql_dir=write(a_001="SELECT 1"))
    assert ask(empty_database, "SELECT length(checksum) FROM schema_migrations") == [64]


def test_a_version_recorded_by_somebody_else_is_refused(empty_database: str, write: Write) -> None:
    migrate(empty_database, sql_dir=write(a_001="SELECT 1"))
    with connect(empty_database) as connection:
        connection.execute("UPDATE schema_migrations SET checksum = NULL")
    with pytest.raises(MigrationError, match=r"001_a\.sql .* without a checksum"):
        migrate(empty_database, sql_dir=write())


def test_an_edited_file_is_refused_by_name_and_nothing_is_applied(
    empty_database: str, write: Write
) -> None:
    sql_dir = write(a_001="CREATE TABLE a ();", b_002="CREATE TABLE b ();")
    migrate(empty_database, sql_dir=sql_dir)
    write(b_002="CREATE TABLE b (n int);", c_003="CREATE TABLE c ();")
    with pytest.raises(MigrationError, match=r"002_b\.sql was edited"):
        migrate(empty_database, sql_dir=sql_dir)
    assert ask(empty_database, "SELECT to_regclass('c') IS NULL") == [True]


def test_other_line_ends_are_not_an_edit(empty_database: str, write: Write) -> None:
    sql_dir = write(a_001="SELECT 1;\nSELECT 2;\n")
    migrate(empty_database, sql_dir=sql_dir)
    (sql_dir / "001_a.sql").write_bytes(b"SELECT 1;\r\nSELECT 2;\r\n")
    assert migrate(empty_database, sql_dir=sql_dir) == []


def test_a_file_that_disappeared_means_that_the_database_is_newer(
    empty_database: str, write: Write
) -> None:
    sql_dir = write(a_001="SELECT 1", b_002="SELECT 2")
    migrate(empty_database, sql_dir=sql_dir)
    (sql_dir / "002_b.sql").unlink()
    with pytest.raises(MigrationError, match=r"has seen 002_b\.sql.*newer"):
        migrate(empty_database, sql_dir=sql_dir)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("SELECT 1;\n\nSELEC 2;", 3, 'syntax error at or near "SELEC"'),
        ("CREATE TABLE kept ();\nSELECT nope\nFROM kept;", 2, 'column "nope" does not exist'),
        # These two carry no position: the line is that of the statement.
        (
            "-- a ; in a comment\nCREATE TABLE kept ();\nSELECT 'a;''b', $x$;\n$x$;\n\n"
            "/* ; */\n  CREATE TABLE kept\n ();\n",
            7,
            'relation "kept" already exists',
        ),
        (
            "CREATE TABLE kept (n int CHECK (n > 0));;\n; INSERT INTO kept VALUES (-1);",
            2,
            "violates check constraint",
        ),
        ("DO $$\nBEGIN\n RAISE 'no, %', 1;\nEND\n$$;", 1, "no, 1\nContext: PL/pgSQL function"),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC\n SELECT 1; SELECT 2; END;\n"
            "ALTER TABLE missing ADD n int;",
            3,
            'relation "missing" does not exist',
        ),
    ],
)
def test_a_failing_file_is_named_with_its_line_and_nothing_of_it_is_kept(
    empty_database: str, write: Write, text: str, line: int, said: str
) -> None:
    sql_dir = write(good_001="CREATE TABLE good ();", bad_002=text)
    with pytest.raises(MigrationError) as failed:
        migrate(empty_database, sql_dir=sql_dir)
    assert f"002_bad.sql, line {line}: " in str(failed.value)
    assert said in str(failed.value)
    assert ask(empty_database, "SELECT to_regclass('kept') IS NULL") == [True]
    assert ask(empty_database, "SELECT version FROM schema_migrations") == ["001_good"]
    write(bad_002="CREATE TABLE kept ();")
    assert migrate(empty_database, sql_dir=sql_dir) == ["002_bad"]


@pytest.mark.parametrize("text", ["COMMIT;", "CREATE TABLE t (); ROLLBACK; BEGIN; SELECT 1;"])
def test_a_file_that_ends_its_own_transaction_is_refused(
    empty_database: str, write: Write, text: str
) -> None:
    with pytest.raises(MigrationError, match=r"001_a\.sql ends the transaction"):
        migrate(empty_database, sql_dir=write(a_001=text))
    assert ask(empty_database, "SELECT count(*) FROM schema_migrations") == [0]


def test_a_copy_from_the_client_is_refused_and_does_not_hang(
    empty_database: str, write: Write
) -> None:
    sql_dir = write(a_001="CREATE TABLE kept (n int); COPY kept FROM STDIN;")
    with pytest.raises(MigrationError, match=r"001_a\.sql: COPY"):
        migrate(empty_database, sql_dir=sql_dir)
    assert ask(empty_database, "SELECT to_regclass('kept') IS NULL") == [True]


def test_what_one_file_sets_for_its_session_does_not_reach_the_next(
    empty_database: str, write: Write
) -> None:
    sql_dir = write(
        a_001="CREATE SCHEMA s; SET search_path = s; SET TimeZone = 'Asia/Kolkata';",
        b_002="CREATE TABLE t AS SELECT current_setting('TimeZone') AS zone;",
    )
    migrate(empty_database, sql_dir=sql_dir)
    assert ask(empty_database, "SELECT zone FROM public.t") == ["UTC"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no migrations"),
        (["002_a.sql"], r"002_a\.sql: this is where number 001 belongs"),
        (["001_a.sql", "003_c.sql"], r"003_c\.sql: this is where number 002 belongs"),
        (["001_a.sql", "001_b.sql"], r"001_b\.sql: this is where number 002 belongs"),
        (["001_a.sql", "2_b.sql"], r"2_b\.sql: call it like"),
        (["001_A b.sql"], r"001_A b\.sql: call it like"),
    ],
)
def test_numbers_go_up_without_gaps_or_doubles(tmp_path: Path, names: list[str], said: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(MigrationError, match=said):
        read_migrations(tmp_path)


def test_starters_at_once_apply_each_file_once(empty_database: str, write: Write) -> None:
    sql_dir = write(
        a_001="CREATE TABLE t (n int); SELECT pg_sleep(0.2);",
        b_002="INSERT INTO t VALUES (1);",
    )
    program = (
        "import sys; from pathlib import Path\n"
        "from pulseguard_assets.warehouse.migrations import migrate\n"
        "print(*migrate(sys.argv[1], sql_dir=Path(sys.argv[2])))"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", program, empty_database, str(sql_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    answers = [starter.communicate(timeout=60) for starter in starters]
    assert [said for _, said in answers] == [""] * 4
    assert sorted(applied.split() for applied, _ in answers) == [[], [], [], ["001_a", "002_b"]]
    assert ask(empty_database, "SELECT n FROM t") == [1]


def test_a_starter_waits_for_another_one_however_long_its_files_take(
    empty_database: str, write: Write
) -> None:
    sql_dir = write(a_001="SELECT 1")
    with connect(empty_database) as working, connect(empty_database) as watcher:
        working.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        starting = Background(
            lambda: migrate(empty_database, sql_dir=sql_dir, patience=timedelta(milliseconds=1))
        )
        wait_for_a_waiting_migrator(watcher)
        time.sleep(0.2)
        assert starting.running
        working.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))
        assert starting.result() == ["001_a"]


def wait_for_a_waiting_migrator(watcher: psycopg.Connection) -> None:
    deadline = time.monotonic() + 20
    while not watcher.execute(
        "SELECT FROM pg_stat_activity WHERE application_name = 'pulseguard migrate' "
        "AND datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchall():
        assert time.monotonic() < deadline, "the migrator does not wait"
        time.sleep(0.005)


@contextmanager
def dumped(dsn: str, table: str) -> Iterator[None]:
    """Somebody reads the table in a transaction, as pg_dump does, until the block ends."""
    with connect(dsn) as dump, dump.transaction():
        dump.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
        yield


def test_an_up_to_date_database_starts_while_somebody_dumps_it(database: str) -> None:
    with dumped(database, "schema_migrations"):
        assert migrate(database, patience=timedelta(milliseconds=1)) == []


def test_a_file_whose_table_somebody_dumps_is_told_and_applied_at_the_next_start(
    empty_database: str, write: Write
) -> None:
    migrate(empty_database, sql_dir=write(a_001="CREATE TABLE t (n int);"))
    sql_dir = write(b_002="CREATE TABLE kept ();\nALTER TABLE t ADD m int;")
    with dumped(empty_database, "t"):
        with pytest.raises(MigrationError) as failed:
            migrate(empty_database, sql_dir=sql_dir, patience=timedelta(milliseconds=50))
        assert "002_b.sql, line 2: canceling statement due to lock timeout" in str(failed.value)
        assert "a backup that runs" in str(failed.value)
        assert ask(empty_database, "SELECT to_regclass('kept') IS NULL") == [True]
    assert migrate(empty_database, sql_dir=sql_dir) == ["002_b"]


def test_a_foreign_ledger_that_somebody_dumps_is_told(empty_database: str, write: Write) -> None:
    with connect(empty_database) as connection:
        connection.execute("CREATE TABLE schema_migrations (version text PRIMARY KEY)")
    with (
        dumped(empty_database, "schema_migrations"),
        pytest.raises(MigrationError, match=r"schema_migrations was not .* 0\.05 seconds.*backup"),
    ):
        migrate(
            empty_database, sql_dir=write(a_001="SELECT 1"), patience=timedelta(milliseconds=50)
        )


def test_a_start_leaves_what_the_files_say_about_the_ledger(database: str) -> None:
    words = (
        "SELECT description FROM pg_description "
        "WHERE objoid = 'schema_migrations'::regclass ORDER BY objsubid"
    )
    before = ask(database, words)
    assert before[0] == "Migrations that have been applied, with the checksum of the file."
    assert len(before) == 4
    migrate(database)
    assert ask(database, words) == before


def test_the_shipped_files_apply_and_are_recorded(database: str) -> None:
    versions = [path.stem for path in sorted(shipped("sql").glob("*.sql"))]
    assert ask(database, "SELECT version FROM schema_migrations ORDER BY 1") == versions
    assert migrate(database) == []

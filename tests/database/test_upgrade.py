"""Upgrade: a database of each earlier state, filled by that state's own functions, to the newest.

Belongs here: that content survives, that the objects are those of a new database, and that the
rules work on what is there. Does not: the runner of migrations itself (test_migrations).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from closes_support import (
    Background,
    Closes,
    Observation,
    clean_up,
    expected,
    insert,
    not_finite,
    one,
    put,
    roll_up_all,
    seen_at,
    stored,
    utc,
)
from psycopg import sql
from psycopg.rows import scalar_row
from psycopg.types.json import Jsonb

from pulseguard_assets.resources import shipped
from pulseguard_assets.timeframes import MINUTE, TIMEFRAMES, Timeframe
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.migrations import MigrationError, migrate, read_migrations

FILES = [migration.path for migration in read_migrations(shipped("sql"))]
NEWEST = [path.stem for path in FILES]
FEW = [1, 4, len(FILES) - 1]

NOW = utc(2026, 2, 3, 12, 30)
LATER = NOW + timedelta(hours=30)
COINS = ("bitcoin", "ether", "tiny")
# From a Sunday on: a week, the month's end inside the next, and two days of the week after.
MINUTES = [
    at
    for day in (utc(2026, 1, 25), *(utc(2026, 1, 26) + timedelta(days=d) for d in range(9)))
    for at in (day + timedelta(minutes=7), day + timedelta(hours=11, minutes=59))
]
OLD = [
    seen_at(coin, at, number + 1, coin_rank=None if coin == "tiny" else number % 9 + 1)
    for number, at in enumerate(MINUTES)
    for coin in COINS
]
NEW = [
    *[seen_at(coin, LATER - timedelta(minutes=3), 500) for coin in COINS],
    # A correction of a minute that the old state stored.
    seen_at("ether", MINUTES[-1], 999, created_at=NOW + timedelta(hours=1), source="correction"),
]
KEEP = {"minute_close": timedelta(days=3), "hourly_close": timedelta(days=5)}
SHIPPED_KEEP = {"daily_close": timedelta(days=7), "weekly_close": timedelta(days=364)}

# Tables that a migration may add rows to: what it brings along.
BROUGHT_ALONG = {"retention_policy", "schema_migrations"}


# -- filling a state -------------------------------------------------------------------------------


def has_table(connection: psycopg.Connection, name: str) -> bool:
    return bool(one(connection, "SELECT to_regclass(%s) IS NOT NULL", (f"public.{name}",)))


def has_function(connection: psycopg.Connection, name: str) -> bool:
    counted = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    return bool(one(connection, f"{counted} AND proname = %s", (name,)))


def fill(connection: psycopg.Connection) -> None:
    """Put into each table that this state has what a running platform of that time would have."""
    fill_coins(connection)
    connection.execute(
        "INSERT INTO collection_status (collection_type, start_time, end_time, coins_processed, "
        "status, error_message, batch_details, created_at, heartbeat_at) VALUES "
        "('continuous', %(now)s, %(now)s, 3, 'completed', NULL, '{\"chunks\": [1, 2.50]}', "
        "%(now)s, %(now)s), "
        "('complete', %(now)s, NULL, 0, 'failed', 'Über 90 %% ''fehlen''', NULL, %(now)s, %(now)s)",
        {"now": NOW},
    )
    for _ in range(2):
        connection.execute(
            "SELECT set_aside(1, %s, NULL, 'the coin id is missing', '{\"usd\": 1e-10}')", (NOW,)
        )
    if has_table(connection, "retention_policy"):
        for table, keep in KEEP.items():
            connection.execute(
                "UPDATE retention_policy SET keep = %s WHERE table_name = %s", (keep, table)
            )
    if has_function(connection, "ensure_partitions"):
        fill_closes(connection)
    if has_table(connection, "api_calls"):
        fill_ledger(connection)
    fill_single_tables(connection)


def fill_coins(connection: psycopg.Connection) -> None:
    rows: list[tuple[Any, ...]] = [
        (0, "bitcoin", 1, 2.5e12, "btc", "Bitcoin", "https://example.org/b.png", NOW),
        (1, "ether", 2, 1e11, "eth", "Ether, 'quoted'", None, None),
        (2, "tiny", None, None, "", "小", None, None),
        (3, "past", None, 0, "past", "Past", None, None),
    ]
    columns = "position, coin_id, market_cap_rank, market_cap_usd, symbol, name, image_url"
    if has_function(connection, "put_staged_coins"):
        connection.execute(
            "CREATE TEMPORARY TABLE staged_coins (position bigint, coin_id text, "
            "market_cap_rank integer, market_cap_usd numeric, symbol text, name text, "
            "image_url text, provider_ts timestamptz)"
        )
        insert_rows(connection, "pg_temp.staged_coins", f"{columns}, provider_ts", rows)
        assert one(connection, "SELECT stored FROM put_staged_coins(1, %s)", (NOW,)) == len(rows)
        connection.execute("DROP TABLE pg_temp.staged_coins")
    else:
        columns = columns.removeprefix("position, ") + ", provider_ts, created_at, last_updated"
        coins = [(*row[1:], NOW, NOW) for row in rows]
        insert_rows(connection, "coin_priorities", columns, coins)


def insert_rows(
    connection: psycopg.Connection, table: str, columns: str, rows: Sequence[Sequence[Any]]
) -> None:
    places = ", ".join(["%s"] * len(columns.split(",")))
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)


def fill_closes(connection: psycopg.Connection) -> None:
    connection.execute("SELECT ensure_partitions(%s, %s)", (MINUTES[0], NOW))
    if not has_function(connection, "put_staged_minutes"):
        # Before there were rules: all five tables by hand, to be what the rules will find.
        for timeframe in TIMEFRAMES:
            insert_closes(connection, timeframe, expected(timeframe, OLD))
        return
    assert put(connection, [*OLD[::-1], not_finite(OLD[0])], NOW) == (len(OLD), 1)
    roll_up_all(connection)
    if has_table(connection, "api_calls"):  # which the cleanup needs, and 005 brings
        assert clean_up(connection, NOW)["minute_close"] > 0
    if has_function(connection, "put_staged_history"):
        fill_history(connection)


def insert_closes(connection: psycopg.Connection, timeframe: Timeframe, closes: Closes) -> None:
    columns = (
        f"coin_id, {timeframe.label}, price_usd, market_cap_usd, volume_24h_usd, coin_rank, "
        "created_at, provider_ts, source"
    )
    columns += "" if timeframe is MINUTE else ", close_ts, seen"
    rows = [(*key, *values) for key, values in closes.items()]
    insert_rows(connection, timeframe.table, columns, rows)


def fill_history(connection: psycopg.Connection) -> None:
    connection.execute("UPDATE collection_scope SET wanted = 7, always = '{past}'")
    connection.execute(
        "SELECT record_unrecoverable('daily', 'past', 'not listed then', %s, %s, %s)",
        (NOW - timedelta(days=5), NOW - timedelta(days=2), NOW),
    )
    connection.execute(
        "CREATE TEMPORARY TABLE staged_history AS SELECT 'past' AS coin_id, day AS stamp, "
        "NULL::timestamptz AS minute_ts, 1.25 AS price_usd, NULL::numeric AS market_cap_usd, "
        "NULL::numeric AS volume_24h_usd, %s::timestamptz AS created_at "
        "FROM generate_series(timestamptz '2025-12-28 00:00+00', '2026-01-05', '1 day') AS day",
        (NOW,),
    )
    connection.execute(
        "SELECT put_staged_history('daily', 'daily', '2025-12-01', '2026-02-01', %s)", (NOW,)
    )
    connection.execute("DROP TABLE pg_temp.staged_history")


def fill_ledger(connection: psycopg.Connection) -> None:
    for number, outcome in enumerate(("successful", "failed", "rate_limited", None)):
        now = NOW + timedelta(seconds=number)
        call = one(
            connection,
            "SELECT call_id FROM reserve_api_call('/simple/price', %s, 30, 10000)",
            (now,),
        )
        retry_at = now + timedelta(seconds=30) if outcome == "rate_limited" else None
        if outcome is not None:
            settle = "SELECT settle_api_call(%s, %s, 200, 120, %s, NULL)"
            assert one(connection, settle, (call, outcome, now))
        if retry_at is not None:
            connection.execute("UPDATE api_budget SET retry_at = %s", (now,))
    if has_function(connection, "release_reserve"):
        connection.execute("SELECT release_reserve(%s)", (NOW,))


def fill_single_tables(connection: psycopg.Connection) -> None:
    if has_table(connection, "platform_purpose"):
        connection.execute("INSERT INTO platform_purpose (purpose) VALUES ('simulated')")
    if has_function(connection, "observe_incidents"):
        finding = {
            "area": "database",
            "cause": "a cause",
            "kind": "a kind",
            "severity": "error",
            "subject": "polling",
            "title": "It fails",
            "message": "three times",
            "occurrences": 3,
        }
        for round_ in range(3):
            connection.execute(
                "SELECT observe_incidents(%s, '{database}', '{mailto://a.org}', %s, '1 hour')",
                (Jsonb([finding] if round_ < 2 else []), NOW + timedelta(minutes=5 * round_)),
            )
    if has_table(connection, "watch_list"):
        connection.execute(
            "INSERT INTO watch_list (kind, name, runs_by_default, every, cron) VALUES "
            "('sensor', 'polling', true, '30 s', NULL), "
            "('schedule', 'daily', false, NULL, '5 0 * * *')"
        )


# -- what a database holds -------------------------------------------------------------------------

Content = dict[str, tuple[list[str], list[str]]]


def content(connection: psycopg.Connection, like: Content | None = None) -> Content:
    """Return table -> (columns, rows as text in order); the tables and columns of `like`."""
    if like is not None:
        return {
            table: (names, rows_of(connection, table, names)) for table, (names, _) in like.items()
        }
    found = connection.execute(
        "SELECT relname, array_agg(attname::text ORDER BY attnum) FROM pg_class "
        "JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped "
        "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') "
        "AND NOT relispartition GROUP BY relname"
    ).fetchall()
    return {table: (names, rows_of(connection, table, names)) for table, names in found}


def rows_of(connection: psycopg.Connection, table: str, columns: Sequence[str]) -> list[str]:
    statement = sql.SQL("SELECT ROW({})::text FROM {}").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier("public", table)
    )
    return sorted(connection.cursor(row_factory=scalar_row).execute(statement))


OBJECTS = """
WITH ours AS (
    SELECT * FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND NOT relispartition
), functions AS (SELECT * FROM pg_proc WHERE pronamespace = 'public'::regnamespace)
SELECT format('relation %s %s %s %s', relkind, relname, reloptions, relacl) FROM ours
UNION ALL
SELECT format('column %s.%s %s %s %s %s %s %s %s', relname, attnum, attname,
              format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
              pg_get_expr(adbin, adrelid), attacl)
FROM ours JOIN pg_attribute a ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef d ON adrelid = attrelid AND adnum = attnum
UNION ALL
SELECT format('constraint %s on %s %s', conname, relname, pg_get_constraintdef(c.oid))
FROM pg_constraint c JOIN ours ON ours.oid = conrelid
UNION ALL
SELECT 'index ' || pg_get_indexdef(oid) FROM ours WHERE relkind IN ('i', 'I')
UNION ALL
SELECT format('trigger %s %s', pg_get_triggerdef(t.oid), tgenabled)
FROM pg_trigger t JOIN ours ON ours.oid = tgrelid WHERE NOT tgisinternal
UNION ALL
SELECT format('view %s %s', relname, pg_get_viewdef(oid)) FROM ours WHERE relkind = 'v'
UNION ALL
SELECT format('function %s %s', pg_get_functiondef(oid), proacl) FROM functions
UNION ALL
SELECT format('comment on %s %s: %s', relname, objsubid, description)
FROM pg_description JOIN ours ON objoid = ours.oid AND classoid = 'pg_class'::regclass
UNION ALL
SELECT format('comment on constraint %s: %s', conname, description)
FROM pg_description JOIN pg_constraint c ON objoid = c.oid AND classoid = 'pg_constraint'::regclass
JOIN ours ON ours.oid = conrelid
UNION ALL
SELECT format('comment on %s: %s', objoid::regprocedure, description)
FROM pg_description JOIN functions ON objoid = functions.oid AND classoid = 'pg_proc'::regclass
"""

# What the name of a partition is part of is compared with that name taken out.
PARTITIONS = """
SELECT parent.relname, part.relname, array_agg(line ORDER BY line COLLATE "C")
FROM pg_class parent JOIN pg_inherits ON inhparent = parent.oid
JOIN pg_class part ON part.oid = inhrelid AND parent.relkind = 'p',
LATERAL (
    SELECT 'options ' || coalesce(part.reloptions::text, '') || coalesce(part.relacl::text, '')
    UNION ALL
    SELECT replace(format('%s %s', conname, pg_get_constraintdef(oid)), part.relname, '*')
    FROM pg_constraint WHERE conrelid = part.oid
    UNION ALL
    SELECT replace(pg_get_indexdef(indexrelid), part.relname, '*')
    FROM pg_index WHERE indrelid = part.oid AND indisvalid
) AS lines (line)
WHERE parent.relnamespace = 'public'::regnamespace
GROUP BY parent.relname, part.relname
"""


def objects(connection: psycopg.Connection) -> set[str]:
    """Return a line of text for everything in schema public that is no partition."""
    return set(connection.cursor(row_factory=scalar_row).execute(OBJECTS))


def kinds_of_partitions(connection: psycopg.Connection) -> dict[str, set[tuple[str, ...]]]:
    """Return table -> the different shapes that its partitions have."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for table, _, lines in connection.execute(PARTITIONS):
        found.setdefault(table, set()).add(tuple(lines))
    return found


# -- databases of each state -----------------------------------------------------------------------


def first_files(folder: Path, number: int, ending: str = "") -> Path:
    """Copy the first `number` files into a new folder, the last one with `ending` added."""
    made = folder / f"first-{number}-{len(list(folder.iterdir()))}"
    made.mkdir()
    for path in FILES[:number]:
        shutil.copy(path, made)
    with (made / FILES[number - 1].name).open("a", encoding="utf-8") as last:
        last.write(ending)
    return made


@dataclass(frozen=True)
class State:
    """A filled database that has seen `number` migrations; tests get copies of it."""

    number: int
    database: str


@pytest.fixture(scope="module", params=range(1, len(FILES)), ids=NEWEST[:-1])
def state(
    request: pytest.FixtureRequest, postgres: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[State]:
    """Each state before the newest; on servers beside the embedded one, a few of them."""
    if not postgres.name.startswith("embedded") and request.param not in FEW:
        pytest.skip("the embedded server goes through every state")
    folder = tmp_path_factory.mktemp("upgrade")
    with postgres.new_database() as dsn:
        sql_dir = first_files(folder, request.param)
        assert migrate(dsn, sql_dir=sql_dir) == NEWEST[: request.param]
        # As at every start: the runner words the comments of its own table anew.
        assert migrate(dsn, sql_dir=sql_dir) == []
        with connect(dsn, application_name="tests") as connection:
            fill(connection)
            name = connection.info.dbname
        yield State(request.param, name)


@pytest.fixture
def dsn(postgres: Any, state: State) -> Iterator[str]:
    """The URL of a copy of that database."""
    with postgres.new_database(state.database) as dsn:
        yield dsn


@pytest.fixture
def old(dsn: str) -> Iterator[psycopg.Connection]:
    """A connection to it."""
    with connect(dsn, application_name="tests") as connection:
        yield connection


@pytest.fixture(scope="module")
def new(postgres: Any) -> Iterator[psycopg.Connection]:
    """A connection to a new database of the newest state."""
    with postgres.new_database(postgres.migrated_template()) as dsn:
        assert migrate(dsn) == []
        with connect(dsn, application_name="tests") as connection:
            yield connection


def test_an_older_database_comes_up_to_date_with_its_content_and_works(
    dsn: str, old: psycopg.Connection, new: psycopg.Connection, state: State
) -> None:
    before = content(old)
    assert migrate(dsn) == NEWEST[state.number :]
    assert_same_content(before, content(old, like=before), content(new))
    assert objects(old) == objects(new)
    old.execute("SELECT ensure_partitions(%s, %s)", (utc(2031, 1, 1), utc(2031, 1, 1)))
    assert {table: len(kinds) for table, kinds in kinds_of_partitions(old).items()} == {
        timeframe.table: 1 for timeframe in TIMEFRAMES
    }
    assert_works(old, OLD if state.number >= 2 else [], KEEP if state.number >= 4 else {})


def assert_same_content(before: Content, after: Content, fresh: Content) -> None:
    for table, (columns, rows) in before.items():
        found = after[table][1]
        if table in BROUGHT_ALONG:
            assert set(rows) <= set(found), table
            assert len(found) == len(fresh[table][1]), table
        else:
            assert found == rows, (table, columns)


def assert_works(
    connection: psycopg.Connection, known: list[Observation], longer: dict[str, timedelta]
) -> None:
    """Put, roll up and clean up, and compare with what the raw observations say."""
    assert put(connection, NEW, LATER) == (len(NEW), 0)
    assert put(connection, NEW, LATER) == (0, 0)
    roll_up_all(connection)
    assert roll_up_all(connection) == 0
    clean_up(connection, LATER)
    shipped_keep = {"minute_close": timedelta(hours=1), "hourly_close": timedelta(hours=24)}
    keep = {**shipped_keep, **SHIPPED_KEEP, **longer}
    for timeframe in TIMEFRAMES:
        everything = expected(timeframe, [*known, *NEW])
        oldest = LATER - keep.get(timeframe.table, timedelta(days=9999))
        kept = {key: values for key, values in everything.items() if key[1] >= oldest}
        assert without_past(stored(connection, timeframe)) == kept, timeframe.table
    assert (
        connection.execute("SELECT * FROM retention_audit_failures(%s)", (LATER,)).fetchall() == []
    )
    blocked = "SELECT coalesce(sum(rows_kept), 0) FROM retention_blocked(%s)"
    assert one(connection, blocked, (LATER,)) == 0


def without_past(closes: Closes) -> Closes:
    """Without the coin that has only history."""
    return {key: values for key, values in closes.items() if key[0] != "past"}


def wait_for_waiting(watcher: psycopg.Connection, wanted: int) -> None:
    """Return when so many migrators wait for a lock."""
    counted = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'pulseguard migrate' AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + 20
    while one(watcher, counted) < wanted:
        assert time.monotonic() < deadline, "the migrators do not wait"
        time.sleep(0.005)


ENDINGS = ("SELECT 1 / 0;", "SELECT pg_terminate_backend(pg_backend_pid());")


def test_a_migration_that_fails_or_is_killed_in_the_middle_leaves_the_state_before_it(
    dsn: str, old: psycopg.Connection, state: State, tmp_path: Path
) -> None:
    before = content(old), objects(old), kinds_of_partitions(old)
    for ending in ENDINGS:
        with pytest.raises(MigrationError, match=FILES[state.number].name):
            migrate(dsn, sql_dir=first_files(tmp_path, state.number + 1, f"\n{ending}\n"))
        assert (content(old), objects(old), kinds_of_partitions(old)) == before
    assert migrate(dsn) == NEWEST[state.number :]


@pytest.mark.parametrize("state", FEW, indirect=True)
def test_two_migrators_at_once_bring_an_old_state_up_to_date_once(
    dsn: str, old: psycopg.Connection, new: psycopg.Connection, state: State
) -> None:
    before = content(old)
    with old.transaction():
        # Whoever comes first stops here, with the lock that the other one then waits for.
        old.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
        migrators = [Background(lambda: migrate(dsn)) for _ in range(2)]
        with connect(dsn) as watcher:
            wait_for_waiting(watcher, len(migrators))
    assert sorted(migrator.result() for migrator in migrators) == [[], NEWEST[state.number :]]
    assert_same_content(before, content(old, like=before), content(new))
    assert objects(old) == objects(new)


def test_a_coin_with_an_id_from_before_its_length_was_limited_stays_and_goes_on(
    empty_database: str, tmp_path: Path
) -> None:
    migrate(empty_database, sql_dir=first_files(tmp_path, 15))
    coin = "x" * 300
    minute = NOW.replace(minute=0)
    with connect(empty_database) as connection:
        connection.execute("INSERT INTO coin_priorities (coin_id) VALUES (%s)", (coin,))
        connection.execute("SELECT ensure_partitions(%s, %s)", (NOW, NOW))
        insert(connection, [seen_at(coin, minute)])
        migrate(empty_database)
        later = seen_at(coin, minute + timedelta(minutes=1), 2)
        insert(connection, [later])
        assert stored(connection, MINUTE) == expected(MINUTE, [seen_at(coin, minute), later])


def test_the_words_of_earlier_versions_about_the_ledger_become_those_of_the_files(
    empty_database: str, tmp_path: Path
) -> None:
    migrate(empty_database, sql_dir=first_files(tmp_path, 15))
    with connect(empty_database) as connection:
        connection.execute("COMMENT ON TABLE schema_migrations IS 'Otherwise'")
        migrate(empty_database)
        told = one(connection, "SELECT obj_description('schema_migrations'::regclass)")
    assert told == "Migrations that have been applied, with the checksum of the file."

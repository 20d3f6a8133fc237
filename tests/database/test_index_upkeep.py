"""Rebuilding bloated indexes: done for real, in nobody's way, and cleared up after a failure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from closes_support import (
    Background,
    copy_of_prepared,
    ensure,
    one,
    prepared_by,
    utc,
    wait_until_blocked,
)

from pulseguard_assets.warehouse import upkeep
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.upkeep import IndexUpkeep, RebuilderBusy, rebuild_indexes

HOUR = utc(2026, 6, 1, 10)
PARTITION = "minute_close_y2026m06"
WORTH = 64 * 1024
AT_ONCE = timedelta(milliseconds=200)


def bloat(connection: psycopg.Connection) -> None:
    """Leave 500 of 20,000 rows, in indexes as large as before."""
    ensure(connection, HOUR)
    connection.execute(
        "INSERT INTO coin_priorities (coin_id, market_cap_rank) "
        "SELECT 'coin-' || md5(n::text), n FROM generate_series(1, 20000) n"
    )
    connection.execute(
        "INSERT INTO minute_close (coin_id, minute_ts, price_usd) "
        "SELECT coin_id, %s, market_cap_rank FROM coin_priorities",
        (HOUR,),
    )
    connection.execute("DELETE FROM minute_close WHERE price_usd > 500")
    connection.execute(f"VACUUM (ANALYZE, TRUNCATE off) {PARTITION}")


prepared = prepared_by(bloat)
database = copy_of_prepared


@pytest.fixture
def second(database: str) -> Iterator[psycopg.Connection]:
    """A second session, which waits for nobody."""
    with connect(database, application_name="tests", lock_timeout=AT_ONCE) as connection:
        yield connection


@pytest.fixture
def third(database: str) -> Iterator[psycopg.Connection]:
    """A third session."""
    with connect(database, application_name="tests", lock_timeout=AT_ONCE) as connection:
        yield connection


def rebuild(connection: psycopg.Connection, patience: timedelta = AT_ONCE) -> IndexUpkeep:
    return rebuild_indexes(connection, worth_bytes=WORTH, patience=patience)


def to_rebuild(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT index_name FROM maintain_indexes(%s) WHERE action = 'reindex' ORDER BY 1", (WORTH,)
    ).fetchall()
    return [row[0] for row in rows]


def files(connection: psycopg.Connection) -> dict[str, int]:
    rows = connection.execute(
        "SELECT relname, relfilenode FROM pg_class "
        "WHERE relkind = 'i' AND relnamespace = 'public'::regnamespace"
    )
    return dict(rows.fetchall())


def invalid(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT relname FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
        "WHERE NOT indisvalid AND relkind = 'i' ORDER BY 1"
    ).fetchall()
    return [row[0] for row in rows]


def write_for_ever(connection: psycopg.Connection) -> None:
    """Hold what a writer holds, which stops a rebuild half-way until the transaction ends."""
    connection.execute(f"LOCK TABLE {PARTITION} IN ROW EXCLUSIVE MODE")


def interrupted_rebuild(
    connection: psycopg.Connection, other: psycopg.Connection, index: str
) -> str:
    """Let a REINDEX give up half-way, as a crash does; returns the name of what it leaves."""
    before = invalid(connection)
    with other.transaction(force_rollback=True):
        write_for_ever(other)
        connection.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connection.execute(f"REINDEX INDEX CONCURRENTLY {index}")
        connection.execute("RESET lock_timeout")
    (left,) = set(invalid(connection)) - set(before)
    return left


# -- rebuilding ------------------------------------------------------------------------------------


def test_exactly_the_bloated_indexes_are_rebuilt_and_smaller_then(
    connection: psycopg.Connection,
) -> None:
    bloated, before = to_rebuild(connection), files(connection)
    assert len(bloated) >= 2

    done = rebuild(connection)

    assert sorted(done.rebuilt) == bloated
    assert all(after < size / 4 for size, after in done.rebuilt.values())
    after = files(connection)
    assert sorted(name for name in before if after[name] != before[name]) == bloated
    assert (done.failed, done.dropped, done.invalid) == ({}, (), ())
    assert done.judged == one(connection, "SELECT count(*) FROM maintain_indexes()")
    assert to_rebuild(connection) == []


def test_a_second_time_there_is_nothing_to_do(connection: psycopg.Connection) -> None:
    rebuild(connection)
    before = files(connection)

    assert rebuild(connection).rebuilt == {}

    assert files(connection) == before


def test_readers_and_writers_go_on_while_it_is_at_work(
    connection: psycopg.Connection,
    second: psycopg.Connection,
    third: psycopg.Connection,
) -> None:
    with third.transaction(force_rollback=True):
        write_for_ever(third)
        work = Background(lambda: rebuild(connection, timedelta(seconds=30)))
        wait_until_blocked(second, connection)

        assert one(second, "SELECT count(*) FROM minute_close") == 500
        assert second.execute("UPDATE minute_close SET price_usd = 4 WHERE price_usd = 3").rowcount
        assert work.running

    assert len(work.result().rebuilt) >= 2


def test_a_reader_never_waits_from_its_beginning_to_its_end(
    connection: psycopg.Connection, second: psycopg.Connection
) -> None:
    work = Background(lambda: rebuild(connection, timedelta(seconds=30)))
    reads = 0
    while work.running or not reads:
        # It gives up at once if it has to wait for a lock.
        assert one(second, "SELECT count(*) FROM minute_close WHERE minute_ts = %s", (HOUR,)) == 500
        reads += 1

    assert len(work.result().rebuilt) >= 2
    assert reads > 1


def test_the_rows_are_found_by_the_rebuilt_indexes(connection: psycopg.Connection) -> None:
    rebuild(connection)
    connection.execute("SET enable_seqscan = off")

    found = one(connection, "SELECT count(*) FROM minute_close WHERE minute_ts = %s", (HOUR,))

    assert found == 500
    assert invalid(connection) == []


def test_it_leaves_the_connection_as_it_was(database: str) -> None:
    with connect(database, lock_timeout=timedelta(seconds=7)) as connection:
        rebuild(connection)

        assert one(connection, "SHOW lock_timeout") == "7s"
        assert one(connection, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


# -- failing ---------------------------------------------------------------------------------------


def test_an_index_that_cannot_be_rebuilt_is_named_and_the_others_are_done(
    connection: psycopg.Connection, third: psycopg.Connection
) -> None:
    bloated = to_rebuild(connection)
    kept_busy = bloated[0]
    # Only this index is locked: the table's other ones can be rebuilt.
    with third.transaction(force_rollback=True):
        third.execute(f"ALTER INDEX {kept_busy} SET (fillfactor = 90)")
        done = rebuild(connection)

    assert list(done.failed) == [kept_busy]
    assert "lock timeout" in done.failed[kept_busy]
    assert sorted(done.rebuilt) == bloated[1:]
    assert invalid(connection) == []


def test_what_a_failed_rebuild_left_behind_is_dropped_before_the_end(
    connection: psycopg.Connection, third: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bloated, tried = to_rebuild(connection), upkeep._tried
    third.execute("BEGIN")
    write_for_ever(third)

    def tried_until_the_writer_is_gone(*arguments: Any) -> bool:
        worked = tried(*arguments)
        third.execute("ROLLBACK")
        return worked

    monkeypatch.setattr(upkeep, "_tried", tried_until_the_writer_is_gone)
    done = rebuild(connection)

    assert sorted([*done.failed, *done.rebuilt]) == bloated
    assert len(done.failed) == 1
    assert done.dropped == tuple(f"{name}_ccnew" for name in done.failed)
    assert invalid(connection) == []


def test_as_long_as_somebody_writes_nothing_is_rebuilt_and_the_next_one_clears_up(
    connection: psycopg.Connection, third: psycopg.Connection
) -> None:
    with third.transaction(force_rollback=True):
        write_for_ever(third)
        done = rebuild(connection)
        assert set(done.failed) >= set(to_rebuild(connection))
        assert done.rebuilt == {}
    left = invalid(connection)
    assert left

    again = rebuild(connection)

    assert again.failed == {}
    assert sorted(again.dropped) == left
    assert invalid(connection) == []


def test_what_an_interrupted_rebuild_left_behind_is_dropped_first(
    connection: psycopg.Connection, third: psycopg.Connection
) -> None:
    index = to_rebuild(connection)[0]
    left = [interrupted_rebuild(connection, third, index) for _ in range(2)]
    assert left == [f"{index}_ccnew", f"{index}_ccnew1"]

    done = rebuild(connection)

    assert done.dropped == tuple(left)
    assert index in done.rebuilt
    assert invalid(connection) == []


def test_an_invalid_index_that_is_no_leftover_is_named_and_left_alone(
    connection: psycopg.Connection,
) -> None:
    connection.execute(f"UPDATE {PARTITION} SET coin_rank = 1")
    for name in ("somebodys", "somebodys_ccnew"):
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(
                f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON {PARTITION} (coin_rank)"
            )

    done = rebuild(connection)

    assert done.invalid == ("somebodys", "somebodys_ccnew"), "no valid index has these columns"
    assert done.dropped == ()
    assert invalid(connection) == ["somebodys", "somebodys_ccnew"]


def test_an_index_that_somebody_is_building_is_not_taken_for_a_leftover(
    connection: psycopg.Connection, second: psycopg.Connection, third: psycopg.Connection
) -> None:
    index = to_rebuild(connection)[0]
    with third.transaction(force_rollback=True):
        write_for_ever(third)
        second.execute("SET lock_timeout = 0")
        building = Background(lambda: second.execute(f"REINDEX INDEX CONCURRENTLY {index}"))
        wait_until_blocked(connection, second)
        assert invalid(connection) == [f"{index}_ccnew"]

        done = rebuild(connection)

        assert done.dropped == ()
        assert f"{index}_ccnew" not in {*done.failed, *done.invalid}
        assert building.running
    building.result()
    assert invalid(connection) == []


def test_two_sessions_do_not_rebuild_at_once(
    connection: psycopg.Connection, second: psycopg.Connection
) -> None:
    with second.transaction():
        second.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('pulseguard.rebuild_indexes', 0))"
        )
        with pytest.raises(RebuilderBusy, match="Let it finish"):
            rebuild(connection)

    assert rebuild(connection).failed == {}

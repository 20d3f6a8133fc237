"""`put_minutes`: what goes in, by whichever of its two ways, and what that leaves in the tables."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulseguard_assets.timeframes import DAILY, HOURLY, MONTHLY, TIMEFRAMES, WEEKLY
from pulseguard_assets.warehouse import closes
from pulseguard_assets.warehouse.closes import (
    MINUTES_SCHEMA,
    Put,
    Window,
    put_minutes,
    roll_up,
    window,
)
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.retention import set_retention

MINUTE = datetime(2026, 11, 22, 12, 3, tzinfo=timezone.utc)
NOW = MINUTE + timedelta(seconds=40)
ARRIVED = MINUTE + timedelta(seconds=28)
ODD_IDS = (
    "a,comma",
    'a "quoted" one',
    "1move token",
    "boringdao-[old]",
    "-10",
    "_",
    "4",
    "🦊",
    "it's",
    "back\\slash",
    "tab\tinside",
    "line\nbreak",
    "return\rinside",
    "\\N",
    "\\.",
    "NULL",
)


def minutes(*rows: dict[str, Any]) -> pl.DataFrame:
    """Rows of `MINUTES_SCHEMA`; what a row does not say is a sound observation of bitcoin."""
    sound = {
        "coin_id": "bitcoin",
        "minute_ts": MINUTE,
        "price_usd": 98109.25,
        "market_cap_usd": 1.9e12,
        "volume_24h_usd": 4.5e10,
        "coin_rank": 1,
        "created_at": ARRIVED,
        "provider_ts": MINUTE,
        "source": "live",
    }
    return pl.DataFrame([sound | row for row in rows], schema=MINUTES_SCHEMA)


def add_coins(connection: psycopg.Connection, *coin_ids: str) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO coin_priorities (coin_id) VALUES (%s)", [(each,) for each in coin_ids]
        )


def stored(connection: psycopg.Connection) -> tuple[Sequence[Any], Sequence[Any]]:
    """All of minute_close and hourly_close."""
    return (
        connection.execute("SELECT * FROM minute_close ORDER BY coin_id, minute_ts").fetchall(),
        connection.execute("SELECT * FROM hourly_close ORDER BY coin_id, hour_ts").fetchall(),
    )


def rejections(connection: psycopg.Connection) -> Sequence[Any]:
    return connection.execute(
        "SELECT coin_id, reason, payload FROM rejected_observations ORDER BY id"
    ).fetchall()


@pytest.fixture
def connection(undone_or_own: psycopg.Connection) -> psycopg.Connection:
    """See `undone_or_own`."""
    return undone_or_own


@pytest.fixture
def coins(connection: psycopg.Connection) -> None:
    """Three coins that are known, and partitions: without them, everything goes the careful way."""
    connection.execute("SELECT ensure_partitions(%s, %s)", (MINUTE, MINUTE))
    add_coins(connection, "bitcoin", "ethereum", "cardano")


@pytest.fixture
def another(database: str) -> Iterator[psycopg.Connection]:
    """A second writer, who does not wait long for a lock."""
    with connect(database, lock_timeout=timedelta(milliseconds=200)) as connection:
        yield connection


pytestmark = pytest.mark.usefixtures("coins")


# --- values ---


PRICES = (
    2.264e-09,
    1e-12,
    98109.12345678901,
    0.1,
    1 / 3,
    1e30,
    5e-324,
    1.7976931348623157e308,
    123456789012345680.0,
    1.0,
)


@pytest.mark.parametrize("careful", [False, True])
def test_a_price_is_stored_as_the_shortest_decimal_that_is_this_float(
    connection: psycopg.Connection, careful: bool
) -> None:
    coin_ids = [f"coin-{n:02}" for n in range(len(PRICES))]
    add_coins(connection, *coin_ids)
    rows = [{"coin_id": c, "price_usd": p} for c, p in zip(coin_ids, PRICES, strict=True)]

    put = put_minutes(
        connection, minutes(*rows, *([{"coin_id": "nobody-knows-it"}] if careful else [])), now=NOW
    )

    assert put.stored == len(PRICES)
    for table in ("minute_close", "hourly_close"):
        found = connection.execute(f"SELECT price_usd FROM {table} ORDER BY coin_id").fetchall()
        assert found == [(Decimal(repr(price)),) for price in PRICES]


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    price=st.floats(min_value=5e-324, allow_nan=False, allow_infinity=False),
    cap=st.floats(allow_nan=False, allow_infinity=False),
    careful=st.booleans(),
)
def test_any_float_comes_back_as_the_same_float(
    connection: psycopg.Connection, price: float, cap: float, careful: bool
) -> None:
    with connection.transaction(force_rollback=True):
        rows = [{"price_usd": price, "market_cap_usd": cap}]
        put_minutes(
            connection,
            minutes(*rows, *([{"coin_id": "nobody-knows-it"}] if careful else [])),
            now=NOW,
        )

        row = connection.execute("SELECT price_usd, market_cap_usd FROM minute_close").fetchone()
        assert row == (Decimal(repr(price)), Decimal(repr(cap)))


@pytest.mark.parametrize("careful", [False, True])
def test_an_odd_id_is_stored_as_it_is(connection: psycopg.Connection, careful: bool) -> None:
    add_coins(connection, *ODD_IDS)
    rows = [{"coin_id": coin_id, "price_usd": float(n)} for n, coin_id in enumerate(ODD_IDS, 1)]

    put = put_minutes(
        connection, minutes(*rows, *([{"coin_id": "nobody-knows-it"}] if careful else [])), now=NOW
    )

    assert put.stored == len(ODD_IDS)
    found = dict(connection.execute("SELECT coin_id, price_usd::int FROM minute_close").fetchall())
    assert found == {coin_id: n for n, coin_id in enumerate(ODD_IDS, 1)}


def test_what_is_not_known_is_null_and_not_zero(connection: psycopg.Connection) -> None:
    unknown = dict.fromkeys(("market_cap_usd", "volume_24h_usd", "coin_rank", "provider_ts"))
    put_minutes(connection, minutes(unknown), now=NOW)

    row = connection.execute(
        "SELECT market_cap_usd, volume_24h_usd, coin_rank, provider_ts FROM minute_close"
    ).fetchone()
    assert row == (None, None, None, None)


def test_every_column_arrives_in_the_minute_and_in_the_hour(
    connection: psycopg.Connection,
) -> None:
    put_minutes(connection, minutes({"provider_ts": MINUTE + timedelta(microseconds=7)}), now=NOW)

    values = (
        Decimal("98109.25"),
        Decimal("1.9e12"),
        Decimal("4.5e10"),
        1,
        ARRIVED,
        MINUTE + timedelta(microseconds=7),
        "live",
    )
    columns = (
        "price_usd, market_cap_usd, volume_24h_usd, coin_rank, created_at, provider_ts, source"
    )
    assert connection.execute(f"SELECT minute_ts, {columns} FROM minute_close").fetchall() == [
        (MINUTE, *values)
    ]
    assert connection.execute(
        f"SELECT hour_ts, close_ts, seen, {columns} FROM hourly_close"
    ).fetchall() == [(MINUTE.replace(minute=0), MINUTE, 1 << 3, *values)]


def test_no_rows_at_all_is_nothing_to_do(connection: psycopg.Connection) -> None:
    assert put_minutes(connection, minutes(), now=NOW) == Put(0, 0)


def test_a_frame_without_a_column_is_refused_before_anything_is_written(
    connection: psycopg.Connection,
) -> None:
    with pytest.raises(pl.exceptions.SchemaError):
        put_minutes(connection, minutes({}).drop("source"), now=NOW)

    assert stored(connection) == ([], [])


# --- the careful way ---

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown id": ({"coin_id": "nobody-knows-it"}, "the coin is not in coin_priorities"),
    "empty id": ({"coin_id": ""}, "the coin id is missing"),
    "no id": ({"coin_id": None}, "the coin id is missing"),
    "NaN": ({"price_usd": float("nan")}, "the price is not a number"),
    "zero": ({"price_usd": 0.0}, "the price is not positive"),
    "minus zero": ({"price_usd": -0.0}, "the price is not positive"),
    "negative": ({"price_usd": -1.5}, "the price is not positive"),
    "infinite": ({"price_usd": float("inf")}, "the price is infinite"),
    "minus infinite": ({"price_usd": float("-inf")}, "the price is not positive"),
    "no price": ({"price_usd": None}, "the price is missing"),
    "market cap NaN": (
        {"market_cap_usd": float("nan")},
        "the market cap is not a finite number",
    ),
    "volume infinite": ({"volume_24h_usd": float("inf")}, "the volume is not a finite number"),
    "future": ({"minute_ts": MINUTE + timedelta(minutes=1)}, "the minute lies in the future"),
    "far future": ({"minute_ts": MINUTE.replace(year=9998)}, "the minute lies in the future"),
    "misaligned": (
        {"minute_ts": MINUTE + timedelta(seconds=1)},
        "the label is not the start of a minute",
    ),
    "no minute": ({"minute_ts": None}, "the minute is missing"),
    "no arrival": ({"created_at": None}, "the instant of recording is missing"),
    "no source": ({"source": None}, "the source is none of live, history, correction"),
    "strange source": ({"source": "rumour"}, "the source is none of live, history, correction"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_faulty_row_is_set_aside_with_its_reason_and_costs_its_batch_nothing(
    connection: psycopg.Connection, fault: str
) -> None:
    row, reason = FAULTS[fault]
    bad = {"coin_id": "cardano", "price_usd": 0.75} | row

    put = put_minutes(
        connection, minutes({}, bad, {"coin_id": "ethereum"}), now=NOW, collection_id=41
    )

    assert put == Put(stored=2, rejected=1)
    kept = connection.execute("SELECT coin_id FROM minute_close ORDER BY 1").fetchall()
    assert kept == [("bitcoin",), ("ethereum",)]
    assert connection.execute("SELECT count(*) FROM hourly_close").fetchone() == (2,)
    filed = connection.execute(
        "SELECT coin_id, reason, collection_id, rejected_at, payload FROM rejected_observations"
    ).fetchone()
    assert filed is not None
    assert filed[:4] == (bad["coin_id"], reason, 41, NOW)
    assert filed[4].keys() == set(MINUTES_SCHEMA)
    price = bad["price_usd"]
    told = filed[4]["price_usd"]
    assert (told if price is None else repr(float(told))) == (
        None if price is None else repr(price + 0.0)
    )


def test_a_batch_of_faults_alone_stores_nothing_and_files_them_all(
    connection: psycopg.Connection,
) -> None:
    put = put_minutes(connection, minutes(*(row for row, _ in FAULTS.values())), now=NOW)

    assert put == Put(stored=0, rejected=len(FAULTS))
    assert stored(connection) == ([], [])
    filed = connection.execute(
        "SELECT reason, sum(times) FROM rejected_observations GROUP BY reason"
    ).fetchall()
    assert dict(filed) == Counter(reason for _, reason in FAULTS.values())


def test_the_same_fault_within_an_hour_is_one_row_that_counts(
    connection: psycopg.Connection, coins: None
) -> None:
    for minute in (0, 1, 61):
        at = NOW + timedelta(minutes=minute)
        put_minutes(connection, minutes({"price_usd": float(-1 - minute)}), now=at)

    filed = connection.execute(
        "SELECT times, payload->>'price_usd' FROM rejected_observations ORDER BY id"
    ).fetchall()
    assert filed == [(2, "-2.0"), (1, "-62.0")]


def test_the_minute_that_holds_now_is_not_the_future(connection: psycopg.Connection) -> None:
    assert put_minutes(connection, minutes({}), now=MINUTE).stored == 1


def test_both_ways_leave_the_same_tables(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same rows, once by plain COPY and once judged row by row."""
    add_coins(connection, *ODD_IDS)
    first = MINUTE.replace(minute=58)
    rows = minutes(
        *(
            {
                "coin_id": coin_id,
                "minute_ts": first + timedelta(minutes=later),
                "price_usd": 2.264e-09 * (n + 1) + later,
                "market_cap_usd": None if n % 3 else 1e9 + n,
                "coin_rank": None if n % 2 else n,
                "created_at": first + timedelta(minutes=later, microseconds=n),
                "source": ("live", "history", "correction")[n % 3],
            }
            for n, coin_id in enumerate(("bitcoin", "ethereum", *ODD_IDS))
            for later in (0, 3, 1, 2)
        )
    )
    now = first + timedelta(minutes=4)
    faulty = minutes({"coin_id": "nobody-knows-it"})
    outcomes = []
    for careful in (False, True):
        with connection.transaction(force_rollback=True), monkeypatch.context() as patch:
            if not careful:
                patch.delattr(closes, "_put_carefully")
            put = put_minutes(connection, pl.concat([rows, faulty]) if careful else rows, now=now)
            outcomes.append((put.stored, stored(connection)))

    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == rows.height
    assert len(outcomes[0][1][1]) == 2 * (2 + len(ODD_IDS)), "two hours each"


def test_a_batch_over_the_turn_of_a_month_is_stored_in_both(
    connection: psycopg.Connection,
) -> None:
    turn = MINUTE.replace(month=12, day=1, hour=0, minute=0)
    rows = [{"minute_ts": turn + timedelta(minutes=n)} for n in (-2, -1, 0, 1)]

    assert put_minutes(connection, minutes(*rows), now=turn + timedelta(hours=1)) == Put(4, 0)

    assert [row[1] for row in stored(connection)[0]] == [row["minute_ts"] for row in rows]
    assert [row[1] for row in stored(connection)[1]] == [turn - timedelta(hours=1), turn]


def test_a_month_without_a_partition_gets_one(connection: psycopg.Connection) -> None:
    far = MINUTE.replace(year=2031, month=5)

    put = put_minutes(connection, minutes({"minute_ts": far}), now=far)

    assert put == Put(stored=1, rejected=0)
    assert stored(connection)[1][0][1] == far.replace(minute=0)


def test_rows_may_come_in_any_order_and_columns_too(connection: psycopg.Connection) -> None:
    rows = minutes({"coin_id": "ethereum"}, {"coin_id": "bitcoin"}, {"coin_id": "cardano"})

    put_minutes(connection, rows.select(reversed(rows.columns)), now=NOW)

    assert [row[0] for row in stored(connection)[0]] == ["bitcoin", "cardano", "ethereum"]


# --- again, and later ---


def test_the_same_batch_again_writes_nothing_and_changes_nothing(
    connection: psycopg.Connection,
) -> None:
    batch = minutes({}, {"coin_id": "ethereum"}, {"minute_ts": MINUTE - timedelta(minutes=1)})
    put_minutes(connection, batch, now=NOW)
    before = stored(connection)
    versions = connection.execute(
        "SELECT ctid FROM minute_close UNION ALL SELECT ctid FROM hourly_close"
    ).fetchall()

    assert put_minutes(connection, batch, now=NOW + timedelta(hours=1)) == Put(0, 0)

    assert stored(connection) == before
    assert (
        versions
        == connection.execute(
            "SELECT ctid FROM minute_close UNION ALL SELECT ctid FROM hourly_close"
        ).fetchall()
    )
    assert rejections(connection) == []


def test_in_the_same_minute_the_later_recorded_wins_in_the_minute_and_in_the_hour(
    connection: psycopg.Connection,
) -> None:
    put_minutes(connection, minutes({}), now=NOW)
    later = {"created_at": ARRIVED + timedelta(seconds=5), "price_usd": 98110.0, "coin_rank": 2}

    assert put_minutes(connection, minutes(later), now=NOW) == Put(1, 0)

    for table in ("minute_close", "hourly_close"):
        assert connection.execute(f"SELECT price_usd, coin_rank FROM {table}").fetchall() == [
            (Decimal(98110), 2)
        ]


def test_in_the_same_minute_the_earlier_recorded_loses(connection: psycopg.Connection) -> None:
    put_minutes(connection, minutes({}), now=NOW)
    before = stored(connection)
    earlier = {"created_at": ARRIVED - timedelta(seconds=5), "price_usd": 1.0}

    assert put_minutes(connection, minutes(earlier), now=NOW) == Put(0, 0)

    assert stored(connection) == before


def test_of_two_rows_of_a_batch_for_one_minute_the_later_recorded_stays(
    connection: psycopg.Connection,
) -> None:
    early = {"created_at": ARRIVED, "price_usd": 1.0}
    late = {"created_at": ARRIVED + timedelta(microseconds=1), "price_usd": 2.0}

    for batch in (minutes(early, late), minutes(late, early)):
        with connection.transaction(force_rollback=True):
            put_minutes(connection, batch, now=NOW)
            assert [row[2] for row in stored(connection)[0]] == [Decimal(2)]


def test_a_late_delivery_of_an_earlier_minute_leaves_the_hour_its_close(
    connection: psycopg.Connection,
) -> None:
    put_minutes(connection, minutes({}), now=NOW)
    late = {"minute_ts": MINUTE - timedelta(minutes=2), "created_at": NOW, "price_usd": 7.0}

    put_minutes(connection, minutes(late), now=NOW)

    hour = connection.execute("SELECT price_usd, close_ts, seen FROM hourly_close").fetchall()
    assert hour == [(Decimal("98109.25"), MINUTE, 1 << 3 | 1 << 1)]


def test_a_correction_replaces_a_wrong_price_and_history_replaces_nothing(
    connection: psycopg.Connection,
) -> None:
    put_minutes(connection, minutes({"price_usd": 1.0}), now=NOW)
    later = {"created_at": NOW, "price_usd": 3.0}

    assert put_minutes(connection, minutes(later | {"source": "history"}), now=NOW).stored == 0
    assert put_minutes(connection, minutes(later | {"source": "correction"}), now=NOW).stored == 1

    assert connection.execute("SELECT price_usd, source FROM hourly_close").fetchall() == [
        (Decimal(3), "correction")
    ]


def test_the_careful_way_can_be_gone_twice_in_one_transaction(
    connection: psycopg.Connection,
) -> None:
    bad = {"coin_id": "nobody-knows-it"}
    with connection.transaction():
        for coin_id in ("bitcoin", "ethereum"):
            assert put_minutes(connection, minutes({"coin_id": coin_id}, bad), now=NOW).stored == 1
    assert len(stored(connection)[0]) == 2


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_order_of_delivery_and_any_repetition_end_in_the_same_tables(
    connection: psycopg.Connection, data: st.DataObject
) -> None:
    observation = st.fixed_dictionaries(
        {
            "coin_id": st.sampled_from(("bitcoin", "ethereum")),
            "minute_ts": st.integers(0, 4).map(lambda n: MINUTE - timedelta(minutes=n)),
            "created_at": st.integers(0, 3).map(lambda n: ARRIVED + timedelta(seconds=n)),
        }
    )
    seen = data.draw(st.lists(observation, min_size=1, max_size=8))
    # One recording is one observation: the same instant cannot tell two prices.
    priced = [row | {"price_usd": _price_of(row)} for row in seen]
    twice = [*priced, *data.draw(st.permutations(priced))]
    outcomes = []
    for order in (priced, twice):
        with connection.transaction(force_rollback=True):
            for row in order:
                put_minutes(connection, minutes(row), now=NOW)
            outcomes.append(stored(connection))
    with connection.transaction(force_rollback=True):
        put_minutes(connection, minutes(*priced), now=NOW)
        outcomes.append(stored(connection))

    assert outcomes[0] == outcomes[1] == outcomes[2]


def _price_of(row: dict[str, Any]) -> float:
    return 1.0 + len(row["coin_id"]) + row["created_at"].second / 10 + row["minute_ts"].minute


# --- not alone ---


def test_two_writers_in_opposite_order_wait_for_each_other_and_both_store(
    connection: psycopg.Connection, database: str
) -> None:
    known = [f"coin-{n:03}" for n in range(200)]
    add_coins(connection, *known)
    start = threading.Barrier(2, timeout=30)
    done: list[Put] = []

    def write(order: Sequence[str], recorded: datetime) -> None:
        with connect(database) as mine:
            for later in range(5):
                at = MINUTE - timedelta(minutes=later)
                rows = [
                    {"coin_id": each, "minute_ts": at, "created_at": recorded} for each in order
                ]
                start.wait()
                done.append(put_minutes(mine, minutes(*rows), now=NOW))

    writers = [
        threading.Thread(target=write, args=(known, ARRIVED)),
        threading.Thread(target=write, args=(known[::-1], ARRIVED + timedelta(seconds=1))),
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)

    assert len(done) == 10, "one of them died"
    rows = connection.execute("SELECT count(*), max(created_at), min(created_at) FROM minute_close")
    later = ARRIVED + timedelta(seconds=1)
    assert rows.fetchone() == (1000, later, later)


def test_a_lock_time_out_stores_nothing_and_files_nothing(
    connection: psycopg.Connection, another: psycopg.Connection
) -> None:
    with connection.transaction():
        put_minutes(connection, minutes({}), now=NOW)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            put_minutes(another, minutes({"coin_id": "ethereum"}, {"price_usd": 0.0}), now=NOW)

    assert [row[0] for row in stored(connection)[0]] == ["bitcoin"]
    assert rejections(connection) == []
    assert put_minutes(another, minutes({"coin_id": "ethereum"}), now=NOW).stored == 1


def test_a_reader_never_waits_for_a_writer(
    connection: psycopg.Connection, another: psycopg.Connection
) -> None:
    with connection.transaction():
        put_minutes(connection, minutes({}), now=NOW)

        assert stored(another) == ([], [])


def test_what_its_caller_takes_back_was_never_stored(connection: psycopg.Connection) -> None:
    with connection.transaction(force_rollback=True):
        put_minutes(connection, minutes({}, {"coin_id": "nobody-knows-it"}), now=NOW)

    assert stored(connection) == ([], [])
    assert rejections(connection) == []


def test_a_stranger_in_another_zone_leaves_the_same_tables(
    connection: psycopg.Connection, local_connection: psycopg.Connection
) -> None:
    put_minutes(local_connection, minutes({}, {"coin_id": "nobody-knows-it"}), now=NOW)

    assert stored(connection)[0][0][:2] == ("bitcoin", MINUTE)
    assert stored(connection)[1][0][:2] == ("bitcoin", MINUTE.replace(minute=0))


# --- the other calls of the module ---


def test_rolling_up_reaches_the_month_and_again_writes_nothing(
    connection: psycopg.Connection,
) -> None:
    put_minutes(connection, minutes({}), now=NOW)
    whole = MINUTE - timedelta(days=40), MINUTE + timedelta(days=40)

    first = [roll_up(connection, each, *whole) for each in (HOURLY, DAILY, WEEKLY, MONTHLY)]
    again = [roll_up(connection, each, *whole) for each in (HOURLY, DAILY, WEEKLY, MONTHLY)]

    assert first == [0, 1, 1, 1], "the hour is live already"
    assert again == [0, 0, 0, 0]
    for timeframe in TIMEFRAMES:
        assert window(connection, timeframe, *whole).rows == 1


def test_a_window_counts_from_its_start_and_stops_before_its_end(
    connection: psycopg.Connection,
) -> None:
    labels = [MINUTE - timedelta(minutes=n) for n in range(4)]
    put_minutes(
        connection,
        minutes(*({"minute_ts": label} for label in labels), {"coin_id": "ethereum"}),
        now=NOW,
    )

    assert window(connection, TIMEFRAMES[0], labels[2], labels[0]) == Window(
        rows=2, coins=1, first=labels[2], last=labels[1]
    )
    assert window(connection, TIMEFRAMES[0], NOW, NOW) == Window(0, 0, None, None)


def test_retention_can_be_lengthened_and_not_shortened(connection: psycopg.Connection) -> None:
    set_retention(connection, {"minute_close": timedelta(days=3)})

    with pytest.raises(psycopg.errors.CheckViolation):
        set_retention(
            connection,
            {"hourly_close": timedelta(days=9), "minute_close": timedelta(minutes=59)},
        )

    kept = connection.execute(
        "SELECT keep FROM retention_policy WHERE table_name IN ('minute_close', 'hourly_close') "
        "ORDER BY table_name"
    ).fetchall()
    assert kept == [(timedelta(days=1),), (timedelta(days=3),)], "all of it or nothing"

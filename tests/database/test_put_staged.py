"""The careful put: one bad row never costs its batch, and nothing older ever wins."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import psycopg
import pytest
from closes_support import (
    Observation,
    add_coins,
    ensure,
    expected,
    insert,
    one,
    prepared_by,
    put,
    seen_at,
    shared_connection,
    stage,
    stored,
    stored_hours,
    undone,
    utc,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulseguard_assets.timeframes import HOURLY, MINUTE

NOW = utc(2026, 6, 1, 12, 0, 30)
MINUTE_OF_NOW = utc(2026, 6, 1, 12)
GOOD = seen_at("bitcoin", MINUTE_OF_NOW, 5)


def prepare(connection: psycopg.Connection) -> None:
    add_coins(connection, "bitcoin", "ether", "tiny")
    ensure(connection, NOW)


prepared = prepared_by(prepare)
shared = shared_connection
closes = undone

FAULTS = [
    (replace(GOOD, coin_id=""), "the coin id is missing"),
    (replace(GOOD, coin_id=None), "the coin id is missing"),  # type: ignore[arg-type]
    (replace(GOOD, coin_id="no-such-coin"), "the coin is not in coin_priorities"),
    (replace(GOOD, minute_ts=None), "the minute is missing"),  # type: ignore[arg-type]
    (
        replace(GOOD, minute_ts=MINUTE_OF_NOW - timedelta(seconds=1)),
        "the label is not the start of a minute",
    ),
    (
        replace(GOOD, minute_ts=MINUTE_OF_NOW + timedelta(minutes=1)),
        "the minute lies in the future",
    ),
    (replace(GOOD, price_usd=None), "the price is missing"),
    (replace(GOOD, price_usd=Decimal("NaN")), "the price is not a number"),
    (replace(GOOD, price_usd=Decimal(0)), "the price is not positive"),
    (replace(GOOD, price_usd=Decimal("-2.5")), "the price is not positive"),
    (replace(GOOD, price_usd=Decimal("-Infinity")), "the price is not positive"),
    (replace(GOOD, price_usd=Decimal("Infinity")), "the price is infinite"),
    (replace(GOOD, market_cap_usd=Decimal("NaN")), "the market cap is not a finite number"),
    (replace(GOOD, market_cap_usd=Decimal("Infinity")), "the market cap is not a finite number"),
    (replace(GOOD, volume_24h_usd=Decimal("-Infinity")), "the volume is not a finite number"),
    (replace(GOOD, source=None), "the source is none of live, history, correction"),
    (replace(GOOD, source="rumour"), "the source is none of live, history, correction"),
]


def reasons(connection: psycopg.Connection) -> list[tuple[str | None, str]]:
    return connection.execute(
        "SELECT coin_id, reason FROM rejected_observations ORDER BY id"
    ).fetchall()


@pytest.mark.parametrize(("bad", "reason"), FAULTS)
def test_a_faulty_row_is_set_aside_with_its_reason_and_the_rest_is_stored(
    closes: psycopg.Connection, bad: Observation, reason: str
) -> None:
    good = seen_at("ether", MINUTE_OF_NOW, 7)
    assert put(closes, [bad, good], NOW) == (1, 1)
    assert stored(closes, MINUTE) == expected(MINUTE, [good])
    assert reasons(closes) == [(bad.coin_id, reason)]


@pytest.mark.parametrize("instant", ["NULL", "'infinity'", "'-infinity'"])
def test_a_row_without_an_instant_of_recording_is_set_aside(
    closes: psycopg.Connection, instant: str
) -> None:
    stage(closes, [GOOD, seen_at("ether", MINUTE_OF_NOW)])
    closes.execute(
        f"UPDATE pg_temp.staged_minutes SET created_at = {instant} WHERE coin_id = 'bitcoin'"
    )
    put_again = closes.execute("SELECT * FROM put_staged_minutes(NULL, %s)", (NOW,)).fetchone()
    assert put_again == (1, 1)
    assert reasons(closes) == [("bitcoin", "the instant of recording is missing")]


@pytest.mark.parametrize("instant", ["infinity", "-infinity"])
def test_an_infinite_minute_is_set_aside(closes: psycopg.Connection, instant: str) -> None:
    stage(closes, [GOOD, seen_at("ether", MINUTE_OF_NOW)])
    closes.execute(
        "UPDATE pg_temp.staged_minutes SET minute_ts = %s WHERE coin_id = 'bitcoin'", (instant,)
    )
    found = closes.execute("SELECT * FROM put_staged_minutes(NULL, %s)", (NOW,)).fetchone()
    assert found == (1, 1)
    assert reasons(closes) == [("bitcoin", "the minute is infinite")]


def test_what_is_set_aside_keeps_its_content_and_its_cycle(closes: psycopg.Connection) -> None:
    bad = replace(GOOD, price_usd=Decimal("NaN"), market_cap_usd=Decimal("1e-12"))
    stage(closes, [bad])
    closes.execute("SELECT put_staged_minutes(41, %s)", (NOW,))
    found = closes.execute(
        "SELECT rejected_at, collection_id, payload, payload ->> 'market_cap_usd' "
        "FROM rejected_observations"
    ).fetchone()
    assert found is not None
    rejected_at, cycle, payload, cap = found
    assert (rejected_at, cycle, cap) == (NOW, 41, "0.000000000001")
    assert payload["price_usd"] == "NaN"
    assert payload["coin_rank"] == 5
    assert "reason" not in payload


def test_the_put_judges_as_the_constraints_do(closes: psycopg.Connection) -> None:
    no_constraint_knows = {"the minute lies in the future"}
    for bad, reason in FAULTS:
        if reason in no_constraint_knows:
            continue
        with pytest.raises(psycopg.IntegrityError), closes.transaction():
            insert(closes, [bad])
    assert put(closes, [bad for bad, _ in FAULTS], NOW) == (0, len(FAULTS))
    assert stored(closes, MINUTE) == {}


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    bad=st.lists(st.sampled_from([bad for bad, _ in FAULTS]), max_size=8),
    good=st.lists(
        st.tuples(st.sampled_from(["bitcoin", "ether"]), st.integers(0, 90), st.integers(1, 9)),
        max_size=8,
    ),
    order=st.randoms(use_true_random=False),
)
def test_every_row_is_either_stored_or_set_aside_and_no_good_one_is_lost(
    closes: psycopg.Connection,
    bad: list[Observation],
    good: list[tuple[str, int, int]],
    order: object,
) -> None:
    sound = [
        seen_at(
            coin,
            MINUTE_OF_NOW - timedelta(minutes=age),
            price,
            created_at=NOW + timedelta(microseconds=number),
        )
        for number, (coin, age, price) in enumerate(good)
    ]
    batch = [*bad, *sound]
    order.shuffle(batch)  # type: ignore[attr-defined]
    with closes.transaction(force_rollback=True):
        minutes = expected(MINUTE, sound)
        assert put(closes, batch, NOW) == (len(minutes), len(bad))
        assert stored(closes, MINUTE) == minutes
        # Of a coin's hour the evidence is of what was stored, whatever else came with it.
        assert stored_hours(closes) == expected(HOURLY, sound)


def test_the_minute_of_now_is_not_the_future(closes: psycopg.Connection) -> None:
    assert put(closes, [GOOD], MINUTE_OF_NOW) == (1, 0)
    early = MINUTE_OF_NOW - timedelta(microseconds=1)
    assert put(closes, [replace(GOOD, coin_id="ether")], early) == (0, 1)


def test_a_point_of_history_never_replaces_another(closes: psycopg.Connection) -> None:
    later = NOW + timedelta(hours=1)
    for source in ("live", "correction", "history"):
        first = replace(GOOD, coin_id="bitcoin", source=source)
        point = replace(first, price_usd=Decimal(9), created_at=later, source="history")
        with closes.transaction(force_rollback=True):
            assert put(closes, [first]) == (1, 0)
            assert put(closes, [point]) == (0, 0)
            assert stored(closes, MINUTE) == expected(MINUTE, [first])
    # Nor when the two come in one batch.
    live = GOOD
    point = replace(GOOD, price_usd=Decimal(9), created_at=later, source="history")
    assert put(closes, [point, live]) == (1, 0)
    assert stored(closes, MINUTE) == expected(MINUTE, [live])


@pytest.mark.parametrize("source", ["live", "correction"])
@pytest.mark.parametrize("recorded", [-3600, 0, 3600])
def test_what_was_seen_replaces_a_point_of_history_whenever_it_was_recorded(
    closes: psycopg.Connection, source: str, recorded: int
) -> None:
    point = replace(GOOD, price_usd=Decimal(9), coin_rank=None, source="history")
    assert point.created_at is not None
    seen = replace(GOOD, source=source, created_at=point.created_at + timedelta(seconds=recorded))
    for batches in ([[point], [seen]], [[seen], [point]], [[point, seen]], [[seen, point]]):
        with closes.transaction(force_rollback=True):
            for batch in batches:
                put(closes, batch)
            assert stored(closes, MINUTE) == expected(MINUTE, [seen])
            assert stored_hours(closes) == expected(HOURLY, [seen])
            assert put(closes, [point, seen]) == (0, 0)


def test_of_two_points_of_history_in_one_batch_the_later_recorded_is_stored(
    closes: psycopg.Connection,
) -> None:
    point = replace(GOOD, source="history")
    assert point.created_at is not None
    later = replace(point, price_usd=Decimal(9), created_at=point.created_at + timedelta(seconds=1))
    assert put(closes, [later, point]) == (1, 0)
    assert stored(closes, MINUTE) == expected(MINUTE, [later])


def test_a_correction_replaces_and_an_earlier_delivery_does_not_come_back(
    closes: psycopg.Connection,
) -> None:
    correction = replace(
        GOOD, price_usd=Decimal(9), created_at=NOW + timedelta(hours=1), source="correction"
    )
    assert put(closes, [GOOD]) == (1, 0)
    assert put(closes, [correction]) == (1, 0)
    assert put(closes, [GOOD]) == (0, 0)
    assert put(closes, [correction]) == (0, 0)
    assert stored(closes, MINUTE) == expected(MINUTE, [GOOD, correction])
    assert stored_hours(closes) == expected(HOURLY, [GOOD, correction])


def test_months_far_apart_get_their_partitions_and_no_month_between_them(
    closes: psycopg.Connection,
) -> None:
    old = [seen_at("bitcoin", utc(1999, 1, 1)), seen_at("bitcoin", MINUTE_OF_NOW)]
    assert put(closes, old, NOW) == (2, 0)
    made = one(
        closes,
        "SELECT count(*) FROM close_partitions('minute_close') WHERE upper_bound < '2019-01-01'",
    )
    assert made == 1


def test_an_empty_stage_stores_nothing(closes: psycopg.Connection) -> None:
    assert put(closes, [], NOW) == (0, 0)


def test_a_strange_text_stays_a_text(closes: psycopg.Connection) -> None:
    for odd in ("'; DROP TABLE minute_close; --", 'a"b', "ключ", "_", "%s"):
        assert put(closes, [replace(GOOD, coin_id=odd)], NOW) == (0, 1)
        add_coins(closes, odd)
        assert put(closes, [replace(GOOD, coin_id=odd)], NOW) == (1, 0)
    assert len(stored_hours(closes)) == 5

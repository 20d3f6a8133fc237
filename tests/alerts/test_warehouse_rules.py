"""What is found wrong with what is stored, paid for and asked of the provider; and what is not."""

from __future__ import annotations

import shlex
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from closes_support import (
    add_coins,
    clean_up,
    ensure,
    insert,
    prepared_by,
    seen_at,
    shared_connection,
    undone,
    utc,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pulseguard_assets.alerts.model import Finding, Look
from pulseguard_assets.alerts.warehouse_rules import (
    Credits,
    look_at_credits,
    look_at_data,
    look_at_partitions,
    look_at_provider,
    look_at_retention,
    look_at_windows,
)
from pulseguard_assets.coingecko.planner import PlanCannotPay, plan_polling, sweep_calls
from pulseguard_assets.coingecko.plans import PLANS, plan_for
from pulseguard_assets.collecting.budget import calls_to_come
from pulseguard_assets.collecting.plan_command import backfill
from pulseguard_assets.timeframes import DAILY, HOURLY
from pulseguard_assets.warehouse.history import record_unrecoverable

# In the past, as the command line knows no history of the future.
NOON = utc(2025, 11, 22, 12)
LONG_AGO = utc(2025, 1, 1)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SECOND = timedelta(seconds=1)


def prepare(connection: psycopg.Connection) -> None:
    ensure(connection, NOON - 30 * DAY, NOON)
    add_coins(connection, "bitcoin", "cardano", "ethereum")
    connection.execute(
        "UPDATE coin_priorities SET created_at = %(ago)s, last_updated = %(ago)s",
        {"ago": LONG_AGO},
    )


prepared = prepared_by(prepare)
shared = shared_connection
connection = undone


def causes(look: Look) -> list[str]:
    return [finding.cause for finding in look.findings]


def only(look: Look) -> Finding:
    (found,) = look.findings
    return found


def call(
    connection: psycopg.Connection,
    number: int,
    outcome: str | None,
    status: int | None = None,
    at: datetime = NOON - MINUTE,
    endpoint: str = "/simple/price",
) -> None:
    connection.execute(
        "INSERT INTO api_calls (called_at, endpoint, outcome, http_status, called_on) "
        "SELECT %(at)s, %(endpoint)s, %(outcome)s, %(status)s, %(at)s "
        "FROM generate_series(1, %(number)s)",
        {
            "at": at,
            "endpoint": endpoint,
            "outcome": outcome,
            "status": status,
            "number": number,
        },
    )


# --- data ---


def look_data(
    connection: psycopg.Connection, now: datetime, cadence: int = 1, **changed: Any
) -> Look:
    watching: dict[str, Any] = {"watching_since": LONG_AGO} | changed
    return look_at_data(connection, now=now, cadence=cadence * MINUTE, **watching)


@pytest.mark.parametrize("cadence", [1, 11])
def test_prices_are_late_when_the_second_poll_after_them_should_have_been_stored(
    connection: psycopg.Connection, cadence: int
) -> None:
    insert(connection, [seen_at("bitcoin", NOON - MINUTE), seen_at("bitcoin", NOON)])
    # The second poll begins 25 s after its minute, and may take until the minute is over.
    due = NOON + 2 * cadence * MINUTE + MINUTE

    assert look_data(connection, due, cadence) == Look((), ("data",))

    late = look_data(connection, due + SECOND, cadence)
    assert late.areas == ("data",)
    finding = only(late)
    assert (finding.cause, finding.severity, finding.area) == (
        "data:minute_close:LATE",
        "critical",
        "data",
    )
    every = "minute" if cadence == 1 else "11 minutes"
    assert finding.message == (
        f"The newest prices are of 2025-11-22 12:00 UTC, {2 * cadence + 1} min ago. With a poll "
        f"every {every} they are never older than {2 * cadence + 1} min: two polls in a row stored "
        "nothing. See the ticks of coingecko_price_sensor."
    )
    assert {"sensor:coingecko_price_sensor:", "daemon", "process:"} <= set(finding.explained_by)
    assert finding.help is not None
    connection.execute(finding.help)


def test_after_downtime_prices_are_late_only_when_somebody_has_looked_for_as_long(
    connection: psycopg.Connection,
) -> None:
    insert(connection, [seen_at("bitcoin", NOON - DAY)])
    begun = NOON

    # An incident that is open is not taken for gone by a watchdog that cannot know yet.
    assert look_data(connection, NOON, watching_since=None) == Look()
    assert look_data(connection, begun + 3 * MINUTE, watching_since=begun) == Look()
    late = look_data(connection, begun + 3 * MINUTE + SECOND, watching_since=begun)
    assert causes(late) == ["data:minute_close:LATE"]


def test_young_prices_are_found_young_at_the_first_look(connection: psycopg.Connection) -> None:
    insert(connection, [seen_at("bitcoin", NOON)])

    assert look_data(connection, NOON + MINUTE, watching_since=None) == Look((), ("data",))


def test_an_empty_table_is_late_only_when_coins_are_known_for_long_enough(
    connection: psycopg.Connection,
) -> None:
    connection.execute("UPDATE coin_priorities SET created_at = %s", (NOON,))
    assert look_data(connection, NOON + 3 * MINUTE) == Look((), ("data",))

    late = only(look_data(connection, NOON + 3 * MINUTE + SECOND))
    assert late.message.startswith(
        "No price was stored since the first coin was known, at 2025-11-22 12:00 UTC. "
    )

    connection.execute("DELETE FROM coin_priorities")
    assert look_data(connection, NOON + DAY) == Look((), ("data",))


def test_a_price_of_the_future_is_named_and_hides_no_late_ones(
    connection: psycopg.Connection,
) -> None:
    insert(connection, [seen_at("bitcoin", NOON), seen_at("bitcoin", NOON + 3 * HOUR)])

    ahead = only(look_data(connection, NOON + MINUTE))
    assert (ahead.cause, ahead.severity) == ("data:minute_close:FUTURE", "error")
    assert "a price of 2025-11-22 15:00 UTC, 2 h 59 min from now" in ahead.message
    assert ahead.help is not None
    connection.execute(ahead.help)

    both = look_data(connection, NOON + 10 * MINUTE)
    assert causes(both) == ["data:minute_close:FUTURE", "data:minute_close:LATE"]
    unknown = look_data(connection, NOON + 10 * MINUTE, watching_since=None)
    assert (causes(unknown), unknown.areas) == (["data:minute_close:FUTURE"], ())


def test_a_clock_that_is_a_minute_behind_sees_no_future(connection: psycopg.Connection) -> None:
    insert(connection, [seen_at("bitcoin", NOON)])

    assert look_data(connection, NOON - MINUTE) == Look((), ("data",))
    assert causes(look_data(connection, NOON - MINUTE - SECOND)) == [
        "data:minute_close:FUTURE",
        "data:minute_close:LATE",
    ]


def test_points_of_history_make_no_late_price_young(connection: psycopg.Connection) -> None:
    insert(
        connection,
        [seen_at("bitcoin", NOON), seen_at("bitcoin", NOON + 9 * MINUTE, source="history")],
    )

    assert causes(look_data(connection, NOON + 10 * MINUTE)) == ["data:minute_close:LATE"]


def test_where_polls_outlive_the_minutes_the_hours_tell_how_late_it_is(
    connection: psycopg.Connection,
) -> None:
    insert(connection, [seen_at("bitcoin", NOON + 4 * MINUTE)])
    connection.execute("DELETE FROM minute_close")
    due = NOON + 4 * MINUTE + 8 * HOUR + MINUTE

    assert look_data(connection, due, 240) == Look((), ("data",))
    assert "of 2025-11-22 12:04 UTC" in only(look_data(connection, due + SECOND, 240)).message


def test_where_polls_outlive_the_hours_the_days_tell_how_late_it_is(
    connection: psycopg.Connection,
) -> None:
    connection.execute(
        "INSERT INTO daily_close (coin_id, day_ts, price_usd, close_ts) "
        "VALUES ('bitcoin', '2025-11-22+00', 1, '2025-11-22 12:04+00'), "
        "('cardano', '2025-11-22+00', 1, NULL)"
    )
    due = NOON + 4 * MINUTE + 40 * HOUR + MINUTE

    assert look_data(connection, due, 1200) == Look((), ("data",))
    assert causes(look_data(connection, due + SECOND, 1200)) == ["data:minute_close:LATE"]


# --- windows ---


def look_windows(
    connection: psycopg.Connection, timeframe: Any = HOURLY, now: datetime = NOON, **changed: Any
) -> Look:
    watching: dict[str, Any] = {"watching_since": LONG_AGO} | changed
    return look_at_windows(connection, timeframe, now=now, **watching)


@pytest.fixture
def complete(connection: psycopg.Connection) -> psycopg.Connection:
    """Every hour of three days and every day of a fortnight, closed in its last minute."""
    connection.execute(
        "INSERT INTO hourly_close (coin_id, hour_ts, price_usd, close_ts, created_at) "
        "SELECT coin_id, hour, 1, hour + interval '59 minutes', hour + interval '59 minutes' "
        "FROM coin_priorities, generate_series(%s, %s, interval '1 hour') AS hour",
        (NOON - 48 * HOUR, NOON + 24 * HOUR),
    )
    connection.execute(
        "INSERT INTO daily_close (coin_id, day_ts, price_usd, close_ts, created_at) "
        "SELECT coin_id, day, 1, day + interval '1439 minutes', day + interval '1439 minutes' "
        "FROM coin_priorities, generate_series(%s, %s, interval '1 day') AS day",
        (utc(2025, 11, 8), utc(2025, 11, 23)),
    )
    return connection


def lose(
    connection: psycopg.Connection, start: datetime, end: datetime, coin: str = "bitcoin"
) -> None:
    for table, label in (("hourly_close", "hour_ts"), ("daily_close", "day_ts")):
        connection.execute(
            f"DELETE FROM {table} WHERE coin_id = %s AND {label} >= %s AND {label} < %s",
            (coin, start, end),
        )


def is_understood(help: str | None) -> bool:
    """Whether the command of a message is one."""
    assert help is not None
    assert help.startswith("pulseguard plan backfill ")
    result = CliRunner().invoke(backfill, shlex.split(help)[3:], catch_exceptions=False)
    return result.exit_code == 0 and result.output.startswith("windows")


def test_where_nothing_is_lacking_no_gap_is_found(complete: psycopg.Connection) -> None:
    assert look_windows(complete, HOURLY) == Look((), ("windows:hourly",))
    assert look_windows(complete, DAILY) == Look((), ("windows:daily",))


def test_hours_that_repair_left_out_are_counted_with_the_command_that_helps(
    complete: psycopg.Connection, only_our_settings: None
) -> None:
    lose(complete, NOON - 5 * HOUR, NOON - 3 * HOUR)
    lose(complete, NOON - 8 * HOUR, NOON - 7 * HOUR, "cardano")

    look = look_windows(complete)

    assert look.areas == ("windows:hourly",)
    finding = only(look)
    assert (finding.cause, finding.severity, finding.area, finding.occurrences) == (
        "windows:hourly_close:UNREPAIRED",
        "error",
        "windows:hourly",
        1,
    )
    assert finding.message.startswith(
        "Within 2 h, repair has not taken 3 hourly closes of 2 coins from the provider's history, "
        "between 2025-11-22 04:00 UTC and 2025-11-22 09:00 UTC. "
    )
    assert finding.help == "pulseguard plan backfill hourly 2025-11-22T04:00 2025-11-22T09:00"
    assert is_understood(finding.help)
    assert "sensor:coingecko_price_sensor:" in finding.explained_by


def test_days_that_repair_left_out_are_counted_with_the_command_that_helps(
    complete: psycopg.Connection, only_our_settings: None
) -> None:
    lose(complete, utc(2025, 11, 18), utc(2025, 11, 19))

    finding = only(look_windows(complete, DAILY))

    assert finding.cause == "windows:daily_close:UNREPAIRED"
    assert "Within 6 h, repair has not taken 1 daily close of 1 coin from" in finding.message
    assert finding.help == "pulseguard plan backfill daily 2025-11-18 2025-11-19"
    assert is_understood(finding.help)


@pytest.mark.parametrize(
    ("timeframe", "lost", "first", "last"),
    [
        (HOURLY, NOON - 4 * HOUR, NOON - HOUR, NOON + 20 * HOUR),
        (DAILY, utc(2025, 11, 16), utc(2025, 11, 17, 6), utc(2025, 11, 23)),
    ],
    ids=["hourly", "daily"],
)
def test_a_gap_is_told_of_from_when_repair_had_its_chance_until_it_is_too_old_for_repair(
    complete: psycopg.Connection,
    timeframe: Any,
    lost: datetime,
    first: datetime,
    last: datetime,
) -> None:
    lose(complete, lost, lost + (HOUR if timeframe is HOURLY else DAY))

    assert not look_windows(complete, timeframe, first - SECOND).findings
    assert look_windows(complete, timeframe, first).findings
    assert look_windows(complete, timeframe, last).findings
    assert not look_windows(complete, timeframe, last + SECOND).findings


def test_what_history_could_not_give_is_nobodys_gap(complete: psycopg.Connection) -> None:
    start, end = NOON - 5 * HOUR, NOON - 4 * HOUR
    lose(complete, start, end)
    assert look_windows(complete).findings

    ago = NOON - HOUR
    assert record_unrecoverable(complete, HOURLY, "bitcoin", "gone", start, end, now=ago) == 1

    assert look_windows(complete) == Look((), ("windows:hourly",))


def test_hours_before_the_coin_was_known_are_nobodys_gap(complete: psycopg.Connection) -> None:
    lose(complete, NOON - 20 * HOUR, NOON - 4 * HOUR)
    known = "UPDATE coin_priorities SET created_at = %s WHERE coin_id = 'bitcoin'"

    complete.execute(known, (NOON - 4 * HOUR,))
    assert look_windows(complete) == Look((), ("windows:hourly",))

    # The hour in which it came to be known is wanted.
    complete.execute(known, (NOON - 4 * HOUR - SECOND,))
    assert "1 hourly close of 1 coin" in only(look_windows(complete)).message


@pytest.mark.parametrize(
    ("timeframe", "patience"), [(HOURLY, 2 * HOUR), (DAILY, 6 * HOUR)], ids=["hourly", "daily"]
)
def test_no_gap_is_told_of_before_repair_had_its_chance_since_the_start_or_the_sweep(
    complete: psycopg.Connection, timeframe: Any, patience: timedelta
) -> None:
    lose(complete, NOON - 5 * DAY, NOON - 4 * HOUR)

    assert look_windows(complete, timeframe, watching_since=None) == Look()
    assert look_windows(complete, timeframe, watching_since=NOON - patience) == Look()
    assert look_windows(complete, timeframe, watching_since=NOON - patience - SECOND).findings

    swept = "UPDATE coin_priorities SET last_updated = %s WHERE coin_id = 'cardano'"
    complete.execute(swept, (NOON - patience,))
    assert look_windows(complete, timeframe) == Look()
    complete.execute(swept, (NOON - patience - SECOND,))
    assert look_windows(complete, timeframe).findings


@pytest.mark.parametrize("timeframe", [HOURLY, DAILY], ids=["hourly", "daily"])
@pytest.mark.parametrize("got", ["hourly_close", "daily_close", "unrecoverable_closes"])
def test_no_gap_is_told_of_while_repair_gets_on(
    complete: psycopg.Connection, timeframe: Any, got: str
) -> None:
    lose(complete, NOON - 5 * DAY, NOON - 4 * HOUR)

    def got_at(instant: datetime) -> None:
        if got == "unrecoverable_closes":
            complete.execute("DELETE FROM unrecoverable_closes")
            record_unrecoverable(
                complete, HOURLY, "bitcoin", "gone", NOON - 6 * HOUR, NOON - 4 * HOUR, now=instant
            )
        else:
            complete.execute(
                f"UPDATE {got} SET source = 'history', created_at = %s WHERE coin_id = 'cardano'",
                (instant,),
            )

    got_at(NOON - 20 * MINUTE + SECOND)
    assert look_windows(complete, timeframe) == Look()
    got_at(NOON - 20 * MINUTE)
    assert look_windows(complete, timeframe).findings


def test_a_live_close_is_no_sign_of_repair(complete: psycopg.Connection) -> None:
    lose(complete, NOON - 5 * HOUR, NOON - 4 * HOUR)
    complete.execute("UPDATE hourly_close SET created_at = %s", (NOON - MINUTE,))

    assert look_windows(complete).findings


def test_what_is_nobodys_to_repair_is_no_gap(complete: psycopg.Connection) -> None:
    lose(complete, NOON - 9 * HOUR, NOON - 4 * HOUR)

    not_before = NOON - 5 * HOUR
    assert "1 hourly close of" in only(look_windows(complete, not_before=not_before)).message
    assert look_windows(complete, not_before=NOON) == Look((), ("windows:hourly",))


# --- retention ---


def look_retention(
    connection: psycopg.Connection, now: datetime, since: datetime | None = LONG_AGO
) -> Look:
    return look_at_retention(connection, now=now, watching_since=since)


def store_hours(connection: psycopg.Connection, *hours: datetime) -> None:
    """Hours that no day carries."""
    for hour in hours:
        connection.execute(
            "INSERT INTO hourly_close (coin_id, hour_ts, price_usd, close_ts) "
            "VALUES ('bitcoin', %(hour)s, 1, %(hour)s)",
            {"hour": hour},
        )


def test_rows_that_nothing_carries_are_told_of_once_two_cleanups_have_left_them(
    connection: psycopg.Connection,
) -> None:
    store_hours(connection, NOON, NOON + HOUR)
    kept = NOON + DAY + 45 * MINUTE

    assert look_retention(connection, kept) == Look((), ("retention",))

    look = look_retention(connection, kept + SECOND)
    assert look.areas == ("retention",)
    finding = only(look)
    assert (finding.cause, finding.severity) == ("retention:hourly_close:BLOCKED", "warning")
    assert finding.message.startswith(
        "1 row of hourly_close should be gone and may not go, the oldest of 2025-11-22 12:00 UTC: "
        "daily_close does not carry it, "
    )
    assert finding.help is not None
    connection.execute(finding.help)
    assert "2 rows of hourly_close" in only(look_retention(connection, kept + 2 * HOUR)).message

    clean_up(connection, kept + 2 * HOUR)
    assert look_retention(connection, kept + 2 * HOUR) == Look((), ("retention",))


def test_the_tables_that_ought_to_carry_the_rows_are_named(connection: psycopg.Connection) -> None:
    connection.execute(
        "INSERT INTO daily_close (coin_id, day_ts, price_usd) "
        "VALUES ('bitcoin', '2025-11-10+00', 1), ('cardano', '2025-11-10+00', 1)"
    )
    ensure(connection, utc(2024, 11, 18))
    connection.execute(
        "INSERT INTO weekly_close (coin_id, week_ts, price_usd) "
        "VALUES ('bitcoin', '2024-11-18+00', 1)"
    )

    day, week = look_retention(connection, NOON).findings

    assert day.cause == "retention:daily_close:BLOCKED"
    assert "weekly_close and monthly_close do not carry them" in day.message
    assert week.cause == "retention:weekly_close:BLOCKED"
    assert "monthly_close does not carry it" in week.message


def test_after_downtime_cleanup_has_its_chance_first(connection: psycopg.Connection) -> None:
    store_hours(connection, NOON - 3 * DAY)

    assert look_retention(connection, NOON, None) == Look()
    assert look_retention(connection, NOON, NOON - 45 * MINUTE) == Look()
    assert look_retention(connection, NOON, NOON - 46 * MINUTE).findings


def test_where_no_cleanup_runs_nobody_knows_what_one_would_leave(
    connection: psycopg.Connection,
) -> None:
    store_hours(connection, NOON - 3 * DAY)
    insert(connection, [seen_at("bitcoin", NOON)])
    dominated_until = NOON + HOUR + 45 * MINUTE

    assert look_retention(connection, dominated_until).areas == ("retention",)
    assert look_retention(connection, dominated_until + SECOND) == Look()


# --- partitions ---


@pytest.mark.parametrize(
    ("now", "severity", "says"),
    [
        (utc(2040, 1, 31, 23), None, ""),
        (utc(2040, 2, 1), "warning", "partitions for this month and the next only"),
        (utc(2040, 3, 28, 23, 59), "warning", "no partition from 2040-04-01 00:00 UTC on"),
        (utc(2040, 3, 29), "critical", "no partition from 2040-04-01 00:00 UTC on"),
        (utc(2040, 4, 1), "critical", "no partition for this month"),
    ],
)
def test_partitions_run_short_by_degrees(
    connection: psycopg.Connection, now: datetime, severity: str | None, says: str
) -> None:
    connection.execute("SELECT ensure_partitions(%s, %s)", (utc(2040, 1, 10), utc(2040, 3, 5)))

    look = look_at_partitions(connection, now=now)

    assert look.areas == ("partitions",)
    if severity is None:
        assert look.findings == ()
        return
    assert causes(look) == [
        f"partitions:{table}_close:SHORT"
        for table in ("minute", "hourly", "daily", "weekly", "monthly")
    ]
    assert {finding.severity for finding in look.findings} == {severity}
    assert look.findings[0].message.startswith(f"minute_close has {says}. ")
    assert look.findings[0].help is not None


def test_the_query_that_helps_against_short_partitions_makes_them(
    connection: psycopg.Connection,
) -> None:
    (now,) = connection.execute("SELECT now() + interval '2 years'").fetchone() or (None,)
    finding = look_at_partitions(connection, now=now).findings[0]
    assert finding.help is not None

    connection.execute(finding.help.replace("now()", f"'{now}'::timestamptz"))

    assert look_at_partitions(connection, now=now).findings == ()


def test_a_single_table_is_named_alone(connection: psycopg.Connection) -> None:
    connection.execute("SELECT ensure_partitions(%s, %s)", (utc(2040, 1, 10), utc(2040, 3, 5)))
    connection.execute("DROP TABLE daily_close_y2040m03")

    assert causes(look_at_partitions(connection, now=utc(2040, 1, 10))) == [
        "partitions:daily_close:SHORT"
    ]


# --- credits ---

DECEMBER = utc(2025, 12, 1)


def test_credits_that_last_the_month_are_not_told_of(connection: psycopg.Connection) -> None:
    for spent in (Credits(5_000, 4_000, 9_000, DECEMBER), Credits(10**9, 10**9, None, DECEMBER)):
        assert look_at_credits(connection, spent, now=NOON) == Look((), ("credits",))


def test_credits_that_will_not_last_are_told_of_with_the_day_they_are_spent(
    connection: psycopg.Connection,
) -> None:
    # Eight and a half days to go; the half of what is needed is left.
    look = look_at_credits(connection, Credits(7_000, 4_000, 9_000, DECEMBER), now=NOON)

    assert look.areas == ("credits",)
    finding = only(look)
    assert (finding.cause, finding.severity) == ("credits:FORECAST", "warning")
    assert finding.message.startswith(
        "7,000 of 9,000 calls of this month are made, and polls and sweeps need 4,000 more: at "
        "that pace nothing is left from 2025-11-26 on. Rarer polls "
    )
    assert finding.help == "pulseguard plan"


@pytest.mark.parametrize(
    ("left", "severity"), [(0, "error"), (3 * 24, "error"), (3 * 24 + 1, "warning")]
)
def test_credits_that_are_spent_within_three_days_are_an_error(
    connection: psycopg.Connection, left: int, severity: str
) -> None:
    hourly = Credits(9_000 - left, 204, 9_000, DECEMBER)

    assert only(look_at_credits(connection, hourly, now=NOON)).severity == severity


def test_credits_that_are_spent_on_the_last_day_only_are_not_told_of(
    connection: psycopg.Connection,
) -> None:
    """What is to come is an upper bound, which no forecast is better than."""
    # An hour takes one.
    just, not_quite = (Credits(9_000 - left, 204, 9_000, DECEMBER) for left in (180, 179))

    assert look_at_credits(connection, just, now=NOON).findings == ()
    assert causes(look_at_credits(connection, not_quite, now=NOON)) == ["credits:FORECAST"]


def test_spent_credits_are_refused_and_no_forecast(connection: psycopg.Connection) -> None:
    for hour in range(30):
        call(connection, 2, "successful", 200, NOON - hour * HOUR, "/coins/{id}/market_chart/range")
        call(connection, 1, "successful", 200, NOON - hour * HOUR, "/ping")

    finding = only(look_at_credits(connection, Credits(9_000, 10, 9_000, DECEMBER), now=NOON))

    assert (finding.cause, finding.severity) == ("credits:REFUSED", "error")
    assert finding.message.startswith(
        "All 9,000 calls that may be made this month are made: nothing is polled until "
        "2025-12-01 00:00 UTC. Of 72 calls in 24 hours, 48 went to "
        "/coins/{id}/market_chart/range. A larger plan "
    )


def test_a_released_reserve_is_allowed_in_its_month_only(connection: psycopg.Connection) -> None:
    spent = Credits(9_500, 400, 9_000, DECEMBER, reserved=1_000)
    connection.execute("SELECT release_reserve(%s)", (utc(2025, 10, 31, 23, 59),))
    assert causes(look_at_credits(connection, spent, now=NOON)) == ["credits:REFUSED"]

    connection.execute("SELECT release_reserve(%s)", (NOON - DAY,))
    assert look_at_credits(connection, spent, now=NOON) == Look((), ("credits",))

    all_of_it = Credits(10_000, 400, 9_000, DECEMBER, reserved=1_000)
    finding = only(look_at_credits(connection, all_of_it, now=NOON))
    assert finding.message.startswith("All 10,000 calls that may be made this month are made")


@settings(max_examples=400, deadline=None)
@given(
    st.builds(
        plan_for,
        st.sampled_from(list(PLANS)),
        credits_per_month=st.none() | st.integers(500, 20_000) | st.integers(500, 5_000_000),
    ),
    st.integers(1, 20_000),
    st.integers(0, 31 * 1440 - 1),
    st.integers(0, 31 * 1440 - 1),
    st.booleans(),
)
def test_a_platform_that_polls_by_its_plan_is_never_told_that_it_cannot_pay(
    shared: psycopg.Connection, plan: Any, coins: int, one: int, other: int, before_poll: bool
) -> None:
    try:
        # The shortest cadence that is paid for, often to the last credit.
        schedule = plan_polling(plan, coins, reserve_percent=Decimal(10))
    except PlanCannotPay:
        return
    cadence = schedule.cadence_minutes
    assume(cadence <= 480)
    month = utc(2026, 1, 1)
    begun, passed = sorted((one, other))
    now = month + passed * MINUTE + 30 * SECOND

    first = int(month.timestamp()) // 60
    # At once for the slot that is open, then for each; and a first sweep beside those at midnight.
    slots = (first + passed) // cadence - (first + begun) // cadence + 1
    midnights = passed // 1440 - begun // 1440
    spent = (slots - before_poll) * schedule.calls_per_poll + (1 + midnights) * sweep_calls(coins)
    credits = Credits(
        spent, calls_to_come(schedule, now), schedule.credits_allowed, utc(2026, 2, 1)
    )

    assume(schedule.credits_allowed is None or spent < schedule.credits_allowed)
    assert look_at_credits(shared, credits, now=now).findings == ()


# --- the provider ---


def look_provider(connection: psycopg.Connection) -> Look:
    look = look_at_provider(connection, now=NOON)
    assert look.areas == ("provider",)
    return look


def test_a_provider_that_fails_half_of_the_calls_is_told_of(connection: psycopg.Connection) -> None:
    call(connection, 5, "successful", 200)
    call(connection, 2, "failed", 503)
    call(connection, 1, "failed")
    call(connection, 1, "rate_limited", 429)
    assert look_provider(connection).findings == ()

    call(connection, 1, "failed", 503)

    finding = only(look_provider(connection))
    assert (finding.cause, finding.severity) == ("provider:ERRORS", "warning")
    assert finding.message == (
        "5 of the 10 calls of the last 15 minutes came to nothing: 4 failed and 1 were refused by "
        "the rate limit, most with HTTP 503."
    )
    assert "sensor:coingecko_price_sensor:" in finding.explained_by
    assert finding.help is not None
    connection.execute(finding.help)


def test_four_calls_say_nothing_of_a_provider(connection: psycopg.Connection) -> None:
    call(connection, 4, "failed")
    assert look_provider(connection).findings == ()

    call(connection, 1, "failed")
    assert only(look_provider(connection)).message.endswith("most without an answer.")


def test_old_calls_and_those_under_way_say_nothing_of_a_provider(
    connection: psycopg.Connection,
) -> None:
    call(connection, 50, "failed", 503, at=NOON - 15 * MINUTE)
    call(connection, 50, "failed", 503, at=NOON + SECOND)
    call(connection, 50, None)
    call(connection, 4, "failed", 503)
    assert look_provider(connection).findings == ()

    call(connection, 1, "failed", 503)
    assert look_provider(connection).findings


def test_a_coin_that_the_provider_does_not_know_is_an_answer(
    connection: psycopg.Connection,
) -> None:
    call(connection, 50, "failed", 404, endpoint="/coins/{id}/market_chart/range")
    assert look_provider(connection).findings == ()

    call(connection, 50, "failed", 404, endpoint="/coins/markets")
    assert look_provider(connection).findings

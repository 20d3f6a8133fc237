"""The checks of the close tables, each run by Dagster on a healthy database and on a broken one."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from closes_support import (
    clean_up,
    copy_of_prepared,
    ensure,
    insert,
    one,
    prepared_by,
    roll_up_all,
    seen_at,
    shared_connection,
    undone,
    utc,
)

from pulseguard_assets.assets import checks as names
from pulseguard_assets.assets.checks import close_checks
from pulseguard_assets.assets.freshness import freshness_policy, with_freshness
from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.automation.checking import SCHEDULE, check_schedules
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.settings import load_settings
from pulseguard_assets.timeframes import (
    DAILY,
    HOURLY,
    MINUTE,
    MONTHLY,
    TIMEFRAMES,
    WEEKLY,
    Timeframe,
)

# As tests/conftest.py has it: the simulator, and so the platform, begins at this instant.
NOW = utc(2025, 11, 22, 12, 3)
COINS = [f"coin-{number}" for number in range(10)]
ALL = {
    names.NEWEST_LABEL_YOUNG,
    names.COVERAGE,
    names.LABELS_ALIGNED,
    names.PARENT_AGREES_WITH_CHILDREN,
    names.NOTHING_DOMINATED_LEFT,
    names.DELETIONS_AUDITED,
    names.PARTITION_RUNWAY,
    names.PRICE_JUMP,
    names.STALE_PROVIDER_TIMES,
}
APPLYING = {
    MINUTE: ALL - {names.PARENT_AGREES_WITH_CHILDREN},
    HOURLY: ALL,
    DAILY: ALL,
    WEEKLY: ALL - {names.DELETIONS_AUDITED},
    MONTHLY: ALL - {names.NOTHING_DOMINATED_LEFT, names.DELETIONS_AUDITED},
}
ROLLUPS = TIMEFRAMES[1:]
PASSED, WARNED, FAILED = "passed", "WARN", "ERROR"


def prepare(connection: psycopg.Connection) -> None:
    """Weeks of polling as it ought to have been: ten coins, rolled up and cleaned."""
    ensure(connection, utc(2025, 10, 1), NOW)
    connection.execute("SELECT ensure_partitions(%s, %s)", (NOW, NOW + timedelta(days=100)))
    connection.execute(
        "INSERT INTO coin_priorities (coin_id, market_cap_rank, created_at, last_updated) "
        "SELECT coin, rank, '2025-10-01', '2025-11-22' "
        "FROM unnest(%s::text[]) WITH ORDINALITY AS c (coin, rank)",
        (COINS,),
    )
    connection.execute("UPDATE collection_scope SET wanted = NULL, always = '{}'")
    days = [utc(2025, 10, 20, 23, 58) + timedelta(days=number) for number in range(33)]
    hours = [utc(2025, 11, 21, 0, 58) + timedelta(hours=number) for number in range(36)]
    minutes = [utc(2025, 11, 22, 10, 30) + timedelta(minutes=number) for number in range(93)]
    insert(
        connection,
        [
            seen_at(coin, minute, 100 + rank, provider_ts=minute - timedelta(seconds=30))
            for minute in sorted({*days, *hours, *minutes})
            for rank, coin in enumerate(COINS)
        ],
    )
    roll_up_all(connection)
    clean_up(connection, NOW)


prepared = prepared_by(prepare)
database = copy_of_prepared
shared = shared_connection
connection = undone

Run = Callable[..., dg.ExecuteInProcessResult]
Outcomes = dict[str, str]


def _asset(timeframe: Timeframe) -> dg.AssetsDefinition:
    """Stands in for the real one: the checks are about the table, however it was filled."""

    @dg.asset(
        key=dg.AssetKey(timeframe.table),
        partitions_def=partitions_of(timeframe, utc(2025, 1, 1).date()),
        deps=[dg.AssetKey(f"{timeframe.child}_close")] if timeframe.child else [],
    )
    def stand_in() -> None:
        pass

    return stand_in


@dataclass
class Clock:
    """Stands still until it is set."""

    now: datetime = NOW

    def set_clock(self, now: datetime) -> None:
        self.now = now


@dataclass(frozen=True)
class InOurTransaction(Platform):
    """A platform that sees what a test has broken and not committed."""

    ours: Any = None

    def connect(self) -> Any:
        return nullcontext(self.ours)


@pytest.fixture
def clock() -> Clock:
    """What the platform takes for the present."""
    return Clock()


@pytest.fixture
def defs(connection: psycopg.Connection, clock: Clock, only_our_settings: None) -> dg.Definitions:
    """The five assets with their checks, and the schedule, in the test's transaction."""
    return definitions_on(
        InOurTransaction(load_settings(), clock=lambda: clock.now, ours=connection)
    )


def definitions_on(platform: Platform) -> dg.Definitions:
    return dg.Definitions(
        assets=[_asset(timeframe) for timeframe in TIMEFRAMES],
        asset_checks=close_checks(),
        schedules=check_schedules(),
        resources={"platform": platform},
        executor=dg.in_process_executor,
    )


@pytest.fixture
def run(defs: dg.Definitions, instance: dg.DagsterInstance) -> Run:
    """`run(DAILY, "2025-11-21")`: materialize it with its checks, as a run of the UI would."""

    def materialize(*timeframes: Timeframe, key: str) -> dg.ExecuteInProcessResult:
        return defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(timeframe.table) for timeframe in timeframes],
            partition_key=key,
            instance=instance,
            raise_on_error=False,
        )

    return materialize


@pytest.fixture
def check(defs: dg.Definitions, instance: dg.DagsterInstance) -> Callable[..., Any]:
    """`check(DAILY)`: run the checks of a table by themselves; returns them by name."""

    def execute(timeframe: Timeframe, *only: str) -> dict[str, dg.AssetCheckEvaluation]:
        key = dg.AssetKey(timeframe.table)
        selection = (
            dg.AssetSelection.checks(*(dg.AssetCheckKey(key, name) for name in only))
            if only
            else dg.AssetSelection.checks_for_assets(key)
        )
        job = dg.Definitions.merge(
            defs, dg.Definitions(jobs=[dg.define_asset_job("looking", selection=selection)])
        ).resolve_job_def("looking")
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        return {each.check_name: each for each in result.get_asset_check_evaluations()}

    return execute


def outcome(evaluation: dg.AssetCheckEvaluation) -> str:
    return PASSED if evaluation.passed else evaluation.severity.value


def failed(evaluations: dict[str, dg.AssetCheckEvaluation]) -> Outcomes:
    """Those that did not pass, with their severity."""
    return {
        name: outcome(each) for name, each in evaluations.items() if outcome(each) is not PASSED
    }


def told(evaluation: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {name: each.value for name, each in evaluation.metadata.items()}


def query_of(evaluation: dg.AssetCheckEvaluation) -> str:
    (query,) = re.findall(r"```sql\n(.*?)```", told(evaluation)["query"], re.DOTALL)
    return str(query)


# --- a healthy database ---


@pytest.mark.parametrize("timeframe", TIMEFRAMES, ids=lambda each: each.name)
def test_on_a_healthy_database_every_check_passes_and_says_so_in_a_sentence(
    check: Any, timeframe: Timeframe
) -> None:
    found = check(timeframe)

    assert set(found) == APPLYING[timeframe]
    assert failed(found) == {}
    for each in found.values():
        assert each.description.endswith(".")
        assert each.asset_key == dg.AssetKey(timeframe.table)


def test_the_checks_have_a_connection_of_their_own_and_close_it(
    database: str, only_our_settings: None, instance: dg.DagsterInstance
) -> None:
    platform = Platform(load_settings(database_url=database), clock=lambda: NOW)
    job = definitions_on(platform).resolve_implicit_global_asset_job_def()

    result = job.execute_in_process(
        asset_selection=[dg.AssetKey("daily_close")],
        partition_key="2025-11-21",
        instance=instance,
    )

    found = {each.check_name: each for each in result.get_asset_check_evaluations()}
    assert (set(found), failed(found)) == (APPLYING[DAILY], {})
    with psycopg.connect(database) as own:
        assert (
            one(
                own,
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
            )
            == 0
        )


def test_the_figures_are_numbers_that_the_ui_plots(check: Any) -> None:
    figures = {
        name: {key: value for key, value in told(each).items() if isinstance(value, int | float)}
        for name, each in check(HOURLY).items()
    }

    assert figures == {
        names.NEWEST_LABEL_YOUNG: {"age_seconds": 180.0},
        names.COVERAGE: {"coverage": 1.0, "coins_expected": 10, "coins_seen": 10},
        names.LABELS_ALIGNED: {"offenders": 0},
        names.PARENT_AGREES_WITH_CHILDREN: {"offenders": 0},
        names.NOTHING_DOMINATED_LEFT: {"overdue": 0, "blocked": 0},
        names.DELETIONS_AUDITED: {"offenders": 0},
        names.PARTITION_RUNWAY: {"months_ahead": 4},
        names.PRICE_JUMP: {"offenders": 0},
        names.STALE_PROVIDER_TIMES: {"stale_share": 0.0, "offenders": 0},
    }


def test_a_single_check_can_be_run_alone(check: Any) -> None:
    assert set(check(DAILY, names.PRICE_JUMP)) == {names.PRICE_JUMP}


def test_only_what_would_spread_blocks() -> None:
    blocking = {spec.name for each in close_checks() for spec in each.check_specs if spec.blocking}

    assert blocking == {names.LABELS_ALIGNED, names.PARENT_AGREES_WITH_CHILDREN}


def test_every_query_that_a_check_offers_runs(connection: psycopg.Connection) -> None:
    specs = [spec for each in close_checks() for spec in each.check_specs]
    assert len(specs) == sum(map(len, APPLYING.values()))

    for spec in specs:
        (query,) = re.findall(r"```sql\n(.*?)```", spec.description or "", re.DOTALL)
        connection.execute(query)


# --- newest_label_young ---


def test_a_minute_is_young_for_two_cadences(check: Any, clock: Clock) -> None:
    # The newest is 12:02, and the shortest cadence that counts 5 minutes.
    clock.set_clock(utc(2025, 11, 22, 12, 12, 59))
    assert failed(check(MINUTE, names.NEWEST_LABEL_YOUNG)) == {}

    clock.set_clock(utc(2025, 11, 22, 12, 13))
    found = check(MINUTE, names.NEWEST_LABEL_YOUNG)

    assert failed(found) == {names.NEWEST_LABEL_YOUNG: FAILED}
    said = found[names.NEWEST_LABEL_YOUNG].description
    assert "is 2025-11-22 12:02 UTC, and should be 2025-11-22 12:03 UTC or later" in said
    assert "price sensor" in said, "where to look"


@pytest.mark.parametrize(
    ("timeframe", "young", "old"),
    [
        (HOURLY, utc(2025, 11, 22, 13, 59), utc(2025, 11, 22, 14, 0)),
        (DAILY, utc(2025, 11, 23, 23, 59), utc(2025, 11, 24, 0, 0)),
        (WEEKLY, utc(2025, 11, 30, 23, 59), utc(2025, 12, 1, 0, 0)),
        (MONTHLY, utc(2025, 12, 31, 23, 59), utc(2026, 1, 1, 0, 0)),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_a_rollup_is_young_while_its_newest_bucket_is_open_or_was_the_last(
    check: Any, clock: Clock, timeframe: Timeframe, young: Any, old: Any
) -> None:
    clock.set_clock(young)
    assert failed(check(timeframe, names.NEWEST_LABEL_YOUNG)) == {}

    # A poll of the last bucket may still be on its way: of these, the cadence twice is the most.
    clock.set_clock(old + timedelta(minutes=10))
    assert failed(check(timeframe, names.NEWEST_LABEL_YOUNG)) == {names.NEWEST_LABEL_YOUNG: FAILED}


@pytest.mark.parametrize("timeframe", TIMEFRAMES, ids=lambda each: each.name)
def test_an_empty_table_is_not_young(
    check: Any, connection: psycopg.Connection, timeframe: Timeframe
) -> None:
    connection.execute(f"TRUNCATE {timeframe.table}")

    found = check(timeframe, names.NEWEST_LABEL_YOUNG)

    assert failed(found) == {names.NEWEST_LABEL_YOUNG: FAILED}
    assert found[names.NEWEST_LABEL_YOUNG].description == f"{timeframe.table} is empty."


def test_a_label_of_the_future_hides_no_old_table(
    check: Any, connection: psycopg.Connection
) -> None:
    insert(connection, [seen_at(COINS[0], utc(2025, 11, 22, 12, 30))])

    found = check(MINUTE, names.NEWEST_LABEL_YOUNG)

    assert failed(found) == {names.NEWEST_LABEL_YOUNG: FAILED}
    assert "lies in the future" in found[names.NEWEST_LABEL_YOUNG].description


def test_minutes_are_not_judged_where_polls_are_further_apart_than_minutes_are_kept(
    check: Any, connection: psycopg.Connection, clock: Clock
) -> None:
    connection.execute("UPDATE collection_scope SET tolerance = '160 minutes'")
    connection.execute("TRUNCATE minute_close")
    clock.set_clock(utc(2025, 11, 22, 15, 30))

    for name in (names.NEWEST_LABEL_YOUNG, names.COVERAGE):
        assert failed(check(MINUTE, name)) == {}
        assert failed(check(HOURLY, name)) == {}, "an hour may have no poll either"

    clock.set_clock(utc(2025, 11, 22, 18, 30))
    assert failed(check(HOURLY, names.NEWEST_LABEL_YOUNG)) == {names.NEWEST_LABEL_YOUNG: FAILED}


# --- coverage ---


@pytest.mark.parametrize("timeframe", TIMEFRAMES, ids=lambda each: each.name)
@pytest.mark.parametrize(("missing", "expected"), [(1, WARNED), (6, FAILED)])
def test_coins_without_a_close_in_the_last_closed_bucket_are_counted_and_named(
    check: Any, connection: psycopg.Connection, timeframe: Timeframe, missing: int, expected: str
) -> None:
    connection.execute(
        f"DELETE FROM {timeframe.table} WHERE coin_id = ANY (%s)", (COINS[:missing],)
    )

    found = check(timeframe, names.COVERAGE)

    assert failed(found) == {names.COVERAGE: expected}
    figures = told(found[names.COVERAGE])
    assert figures["coverage"] == 1 - missing / 10
    assert (figures["coins_seen"], figures["coins_expected"]) == (10 - missing, 10)
    assert [row.data["coin_id"] for row in figures["first"].records] == COINS[:missing]


def test_the_open_bucket_is_not_counted(check: Any, connection: psycopg.Connection) -> None:
    connection.execute("DELETE FROM daily_close WHERE day_ts = '2025-11-22 00:00+00'")

    assert failed(check(DAILY, names.COVERAGE)) == {}


def test_nothing_is_expected_of_a_bucket_before_any_coin_was_known(
    check: Any, connection: psycopg.Connection
) -> None:
    """As in the first month of a new installation."""
    connection.execute("DELETE FROM monthly_close WHERE month_ts < '2025-11-01 00:00+00'")
    assert failed(check(MONTHLY, names.COVERAGE)) == {names.COVERAGE: FAILED}

    connection.execute("UPDATE coin_priorities SET created_at = '2025-11-01 00:00+00'")

    found = check(MONTHLY, names.COVERAGE)
    assert failed(found) == {}
    assert "No coin was known before 2025-11-01 00:00 UTC" in found[names.COVERAGE].description


# --- labels_aligned ---


@pytest.mark.parametrize("timeframe", TIMEFRAMES, ids=lambda each: each.name)
def test_a_label_that_is_no_start_of_a_bucket_is_found_once_the_constraint_is_gone(
    check: Any, connection: psycopg.Connection, timeframe: Timeframe
) -> None:
    connection.execute(
        f"ALTER TABLE {timeframe.table} DROP CONSTRAINT chk_label_aligned, "
        "DROP CONSTRAINT IF EXISTS chk_close_in_bucket"
    )
    connection.execute(
        f"UPDATE {timeframe.table} SET {timeframe.label} = {timeframe.label} + interval '7 s' "
        "WHERE coin_id = 'coin-3'"
    )

    found = check(timeframe, names.LABELS_ALIGNED)

    assert failed(found) == {names.LABELS_ALIGNED: FAILED}
    figures = told(found[names.LABELS_ALIGNED])
    assert figures["offenders"] == one(
        connection, f"SELECT count(*) FROM {timeframe.table} WHERE coin_id = 'coin-3'"
    )
    assert {row.data["coin_id"] for row in figures["first"].records} == {"coin-3"}


@pytest.mark.parametrize("timeframe", ROLLUPS, ids=lambda each: each.name)
def test_a_close_observed_outside_its_bucket_is_found_once_the_constraint_is_gone(
    check: Any, connection: psycopg.Connection, timeframe: Timeframe
) -> None:
    connection.execute(f"ALTER TABLE {timeframe.table} DROP CONSTRAINT chk_close_in_bucket")
    newest = one(connection, f"SELECT max({timeframe.label}) FROM {timeframe.table}")
    connection.execute(
        f"UPDATE {timeframe.table} SET close_ts = {timeframe.label} - interval '1 us' "
        f"WHERE coin_id = 'coin-3' AND {timeframe.label} = %s",
        (newest,),
    )

    found = check(timeframe, names.LABELS_ALIGNED)

    assert failed(found) == {names.LABELS_ALIGNED: FAILED}
    assert told(found[names.LABELS_ALIGNED])["offenders"] == 1


# --- parent_agrees_with_children ---

# The newest bucket that has ended, and that still has its children.
CLOSED = {
    HOURLY: ("2025-11-22-11:00", "2025-11-22 11:00+00"),
    DAILY: ("2025-11-21", "2025-11-21 00:00+00"),
    WEEKLY: ("2025-11-10", "2025-11-10 00:00+00"),
    MONTHLY: ("2025-10-01", "2025-10-01 00:00+00"),
}
WAYS_TO_DISAGREE = {
    "there is no row": "DELETE FROM {table} WHERE coin_id = 'coin-3' AND {label} = %s",
    "the close is older than its child": "UPDATE {table} SET close_ts = {label}, created_at = "
    "{label} WHERE coin_id = 'coin-3' AND {label} = %s",
    "the evidence lacks its child": "UPDATE {table} SET seen = 0 "
    "WHERE coin_id = 'coin-3' AND {label} = %s",
}


def keep_children_longer(connection: psycopg.Connection) -> None:
    """Put days back that retention took: weeks and months ended before those that are left."""
    for day in range(33):
        connection.execute(
            "INSERT INTO daily_close (coin_id, day_ts, price_usd, created_at, close_ts, seen) "
            "SELECT coin_id, day, 99 + market_cap_rank, day + interval '23:59', "
            "day + interval '23:58', 1::bigint << 23 FROM coin_priorities, "
            "(SELECT timestamptz '2025-10-20 00:00+00' + %s * interval '1 day' AS day) AS d "
            "ON CONFLICT DO NOTHING",
            (day,),
        )
    roll_up_all(connection)


@pytest.mark.parametrize("timeframe", ROLLUPS, ids=lambda each: each.name)
@pytest.mark.parametrize("fault", WAYS_TO_DISAGREE)
def test_a_close_that_disagrees_right_after_its_roll_up_is_an_error(
    run: Run, connection: psycopg.Connection, timeframe: Timeframe, fault: str
) -> None:
    keep_children_longer(connection)
    key, label = CLOSED[timeframe]
    connection.execute(
        WAYS_TO_DISAGREE[fault].format(table=timeframe.table, label=timeframe.label), (label,)
    )

    evaluations = run(timeframe, key=key).get_asset_check_evaluations()

    (found,) = [
        each for each in evaluations if each.check_name == names.PARENT_AGREES_WITH_CHILDREN
    ]
    assert outcome(found) == FAILED
    figures = told(found)
    assert figures["offenders"] == 1
    (row,) = figures["first"].records
    assert (row.data["coin_id"], row.data["fault"]) == ("coin-3", fault)
    assert row.data["label"].startswith(label[:16])


@pytest.mark.parametrize("timeframe", ROLLUPS, ids=lambda each: each.name)
def test_a_close_that_was_not_rolled_up_yet_is_a_warning_but_hours_always_agree(
    check: Any, connection: psycopg.Connection, timeframe: Timeframe
) -> None:
    keep_children_longer(connection)
    _, label = CLOSED[timeframe]
    connection.execute(f"DELETE FROM {timeframe.table} WHERE {timeframe.label} = %s", (label,))

    found = check(timeframe, names.PARENT_AGREES_WITH_CHILDREN)

    expected = FAILED if timeframe is HOURLY else WARNED
    assert failed(found) == {names.PARENT_AGREES_WITH_CHILDREN: expected}
    assert told(found[names.PARENT_AGREES_WITH_CHILDREN])["offenders"] == 10


def test_a_day_has_an_hour_to_be_rolled_up_and_the_open_one_all_day(
    check: Any, connection: psycopg.Connection, clock: Clock
) -> None:
    insert(connection, [seen_at(COINS[0], utc(2025, 11, 22, 23, 59))])
    connection.execute("DELETE FROM daily_close WHERE day_ts = '2025-11-22 00:00+00'")

    for now, expected in (
        (utc(2025, 11, 22, 23, 59, 59), {}),
        (utc(2025, 11, 23, 0, 59), {}),
        (utc(2025, 11, 23, 1, 0), {names.PARENT_AGREES_WITH_CHILDREN: WARNED}),
    ):
        clock.set_clock(now)
        assert failed(check(DAILY, names.PARENT_AGREES_WITH_CHILDREN)) == expected, now


def test_a_run_of_the_open_bucket_is_not_held_against_polls_that_go_on(
    run: Run, connection: psycopg.Connection
) -> None:
    connection.execute("DELETE FROM daily_close WHERE day_ts = '2025-11-22 00:00+00'")

    assert run(DAILY, key="2025-11-22").success


def test_an_observation_that_arrived_during_the_run_is_not_held_against_it(
    run: Run, connection: psycopg.Connection, clock: Clock
) -> None:
    late = seen_at(COINS[0], utc(2025, 11, 21, 23, 59), created_at=NOW)
    insert(connection, [late])
    assert run(DAILY, key="2025-11-21").success

    clock.set_clock(NOW + timedelta(minutes=3))
    assert not run(DAILY, key="2025-11-21").success


# --- nothing_dominated_left ---


@pytest.mark.parametrize(
    ("timeframe", "due"),
    [
        # The oldest that the last cleanup left, and how long that is kept.
        (MINUTE, utc(2025, 11, 22, 11, 3) + timedelta(minutes=60)),
        (HOURLY, utc(2025, 11, 21, 13) + timedelta(hours=24)),
        (DAILY, utc(2025, 11, 16) + timedelta(days=7)),
        (WEEKLY, utc(2025, 10, 20) + timedelta(days=364)),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_closes_half_an_hour_past_their_retention_mean_that_no_cleanup_runs(
    check: Any, clock: Clock, timeframe: Timeframe, due: Any
) -> None:
    clock.set_clock(due + timedelta(minutes=30))
    assert failed(check(timeframe, names.NOTHING_DOMINATED_LEFT)) == {}

    clock.set_clock(due + timedelta(minutes=30, seconds=1))
    found = check(timeframe, names.NOTHING_DOMINATED_LEFT)

    assert failed(found) == {names.NOTHING_DOMINATED_LEFT: WARNED}
    assert told(found[names.NOTHING_DOMINATED_LEFT])["overdue"] == 10
    assert "cleanup_old_data()" in found[names.NOTHING_DOMINATED_LEFT].description


def test_closes_that_no_rollup_carries_stay_and_are_counted(
    check: Any, connection: psycopg.Connection, clock: Clock
) -> None:
    connection.execute("DELETE FROM hourly_close WHERE hour_ts = '2025-11-22 11:00+00'")
    clock.set_clock(utc(2025, 11, 22, 12, 40))

    found = check(MINUTE, names.NOTHING_DOMINATED_LEFT)

    assert failed(found) == {}
    assert told(found[names.NOTHING_DOMINATED_LEFT])["blocked"] == 370
    said = found[names.NOTHING_DOMINATED_LEFT].description
    assert "370 closes stay beyond their retention" in said


# --- deletions_audited ---


@pytest.mark.parametrize(
    ("timeframe", "parent"), [(MINUTE, HOURLY), (HOURLY, DAILY), (DAILY, MONTHLY)]
)
def test_evidence_that_does_not_account_for_what_was_deleted_is_an_error(
    check: Any, connection: psycopg.Connection, timeframe: Timeframe, parent: Timeframe
) -> None:
    connection.execute(
        f"UPDATE {parent.table} SET seen = 0 WHERE coin_id = 'coin-3' AND {parent.label} = "
        "(SELECT max(bucket) FROM retention_audit WHERE table_name = %s AND rollup = %s)",
        (timeframe.table, parent.name),
    )

    found = check(timeframe, names.DELETIONS_AUDITED)

    assert failed(found) == {names.DELETIONS_AUDITED: FAILED}
    assert told(found[names.DELETIONS_AUDITED])["offenders"] == 1
    assert failed(check(parent)).get(names.DELETIONS_AUDITED) is None, "it is filed by the deleted"


# --- partition_runway ---


@pytest.mark.parametrize(
    ("timeframe", "months", "expected"),
    [
        *((timeframe, 1, WARNED) for timeframe in TIMEFRAMES),
        (DAILY, 2, PASSED),
        (DAILY, 0, FAILED),
        (DAILY, -1, FAILED),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_partitions_that_run_out_are_a_warning_and_then_an_error(
    check: Any, connection: psycopg.Connection, timeframe: Timeframe, months: int, expected: str
) -> None:
    doomed = connection.execute(
        "SELECT partition::text FROM close_partitions(%s) "
        "WHERE lower_bound > timestamptz '2025-11-01 00:00+00' + %s * interval '1 month'",
        (timeframe.table, months),
    ).fetchall()
    for (partition,) in doomed:
        connection.execute(f"DROP TABLE {partition}")

    found = check(timeframe, names.PARTITION_RUNWAY)[names.PARTITION_RUNWAY]

    assert outcome(found) == expected
    assert told(found)["months_ahead"] == months


# --- price_jump ---


@pytest.mark.parametrize("timeframe", TIMEFRAMES, ids=lambda each: each.name)
@pytest.mark.parametrize(("factor", "back", "kind"), [("10.1", 0, "jump"), ("0.01", 1, "spike")])
def test_a_price_ten_times_off_is_named(
    check: Any,
    connection: psycopg.Connection,
    timeframe: Timeframe,
    factor: str,
    back: int,
    kind: str,
) -> None:
    keep_children_longer(connection)
    stretch(connection, timeframe)
    connection.execute("ALTER TABLE minute_close DISABLE TRIGGER USER")
    connection.execute(
        f"UPDATE {timeframe.table} SET price_usd = 103 * {factor} WHERE coin_id = 'coin-3' AND "
        f"{timeframe.label} = buckets_ago(%s, %s, %s)",
        (timeframe.name, NOW, 1 + back),
    )

    found = check(timeframe, names.PRICE_JUMP)

    assert failed(found) == {names.PRICE_JUMP: WARNED}
    assert told(found[names.PRICE_JUMP])["offenders"] == 1
    (row,) = told(found[names.PRICE_JUMP])["first"].records
    assert (row.data["coin_id"], row.data["kind"]) == ("coin-3", kind)
    assert "coin-3" in found[names.PRICE_JUMP].description


def stretch(connection: psycopg.Connection, timeframe: Timeframe) -> None:
    """Make the three last closed buckets of a coin, where the prepared weeks are too few."""
    ensure(connection, utc(2025, 8, 1), utc(2025, 9, 1))
    connection.execute(
        f"INSERT INTO {timeframe.table} (coin_id, {timeframe.label}, price_usd) "
        "SELECT 'coin-3', buckets_ago(%s, %s, n), 103 FROM generate_series(1, 3) AS n "
        "ON CONFLICT DO NOTHING",
        (timeframe.name, NOW),
    )


# --- stale_provider_times ---


@pytest.mark.parametrize(
    ("timeframe", "stale", "expected"),
    [*((timeframe, 2, WARNED) for timeframe in TIMEFRAMES), (DAILY, 1, PASSED)],
    ids=lambda each: getattr(each, "name", None),
)
def test_prices_that_were_old_when_they_were_observed_are_named(
    check: Any, connection: psycopg.Connection, timeframe: Timeframe, stale: int, expected: str
) -> None:
    closed = timeframe.label if timeframe is MINUTE else "close_ts"
    connection.execute(
        f"UPDATE {timeframe.table} SET provider_ts = {closed} - interval '61 minutes' "
        "- right(coin_id, 1)::integer * interval '1 day' WHERE coin_id = ANY (%s)",
        (COINS[:stale],),
    )

    found = check(timeframe, names.STALE_PROVIDER_TIMES)[names.STALE_PROVIDER_TIMES]

    assert outcome(found) == expected
    assert told(found)["stale_share"] == stale / 10
    if expected == WARNED:
        named = [row.data["coin_id"] for row in told(found)["first"].records]
        assert named == COINS[:stale][::-1], "the oldest first"


# --- what a person gets ---


def test_the_query_in_a_result_shows_the_offenders(
    check: Any, connection: psycopg.Connection
) -> None:
    connection.execute("DELETE FROM hourly_close WHERE coin_id = 'coin-3'")
    connection.execute(
        "ALTER TABLE hourly_close DROP CONSTRAINT chk_label_aligned, "
        "DROP CONSTRAINT chk_close_in_bucket"
    )
    connection.execute(
        "UPDATE hourly_close SET hour_ts = hour_ts + interval '7 s', "
        "provider_ts = provider_ts - interval '2 hours', price_usd = 5 "
        "WHERE coin_id = 'coin-4' AND hour_ts >= '2025-11-22 10:00+00'"
    )

    found = check(HOURLY)

    assert set(failed(found)) >= {
        names.COVERAGE,
        names.LABELS_ALIGNED,
        names.PARENT_AGREES_WITH_CHILDREN,
        names.PRICE_JUMP,
    }
    for name in failed(found):
        shown = connection.execute(query_of(found[name])).fetchall()
        first = told(found[name])["first"].records
        assert shown, name
        assert len(first) == min(20, len(shown)), name


# --- runs ---


@pytest.fixture
def misaligned(connection: psycopg.Connection) -> None:
    """One minute whose label is no start of a minute."""
    connection.execute("ALTER TABLE minute_close DROP CONSTRAINT chk_label_aligned")
    connection.execute("ALTER TABLE minute_close DISABLE TRIGGER USER")
    connection.execute(
        "UPDATE minute_close SET minute_ts = minute_ts + interval '7 s' "
        "WHERE coin_id = 'coin-3' AND minute_ts = '2025-11-22 12:02+00'"
    )


@pytest.mark.usefixtures("misaligned")
def test_a_blocking_failure_stops_what_is_downstream_in_the_same_run(run: Run) -> None:
    result = run(MINUTE, HOURLY, key="2025-11-22-11:00")

    assert not result.success
    done = {event.asset_key for event in result.get_asset_materialization_events()}
    assert done == {dg.AssetKey("minute_close")}
    checked = {
        each.check_name: each
        for each in result.get_asset_check_evaluations()
        if each.asset_key == dg.AssetKey("minute_close")
    }
    assert failed(checked) == {names.LABELS_ALIGNED: FAILED}
    assert set(checked) == APPLYING[MINUTE], "the others are told as well"


def test_a_failure_that_does_not_block_lets_the_run_go_on(
    run: Run, connection: psycopg.Connection
) -> None:
    connection.execute("DELETE FROM minute_close WHERE coin_id <> 'coin-3'")

    result = run(MINUTE, HOURLY, key="2025-11-22-11:00")

    assert result.success
    assert len(result.get_asset_materialization_events()) == 2
    assert FAILED in {outcome(each) for each in result.get_asset_check_evaluations()}


def test_a_range_of_partitions_is_checked_as_a_whole(
    defs: dg.Definitions, instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    """As the schedules request them: by the tags of a range."""
    connection.execute("DELETE FROM daily_close WHERE day_ts = '2025-11-21 00:00+00'")
    job = defs.resolve_implicit_global_asset_job_def()

    outcomes = []
    for first, last in (("2025-11-20", "2025-11-22"), ("2025-11-18", "2025-11-20")):
        result = job.execute_in_process(
            asset_selection=[dg.AssetKey("daily_close")],
            instance=instance,
            raise_on_error=False,
            tags={
                "dagster/asset_partition_range_start": first,
                "dagster/asset_partition_range_end": last,
            },
        )
        (found,) = [
            each
            for each in result.get_asset_check_evaluations()
            if each.check_name == names.PARENT_AGREES_WITH_CHILDREN
        ]
        outcomes.append(outcome(found))

    assert outcomes == [FAILED, WARNED], "rolled up in this run, and at some other time"


# --- the schedule ---


def test_the_checks_of_minutes_run_hourly_for_their_events_have_no_run(
    defs: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    repository = defs.get_repository_def()
    schedule = repository.get_schedule_def(SCHEDULE)

    assert (schedule.cron_schedule, schedule.execution_timezone) == ("20 * * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING

    result = repository.get_job(schedule.job_name).execute_in_process(instance=instance)

    assert result.success
    assert not result.get_asset_materialization_events()
    evaluations = result.get_asset_check_evaluations()
    assert {each.check_name for each in evaluations} == APPLYING[MINUTE]
    assert {each.asset_key for each in evaluations} == {dg.AssetKey("minute_close")}


# --- freshness ---


def test_every_close_asset_has_a_freshness_policy_and_no_other_gets_one() -> None:
    assets = [dg.AssetSpec("coin_priorities"), *(_asset(timeframe) for timeframe in TIMEFRAMES)]
    fresh = dg.Definitions(dg.map_asset_specs(with_freshness(timedelta(minutes=1)), assets))

    policies = {
        spec.key.to_user_string(): spec.freshness_policy for spec in fresh.resolve_all_asset_specs()
    }

    assert {name for name, policy in policies.items() if policy is not None} == {
        timeframe.table for timeframe in TIMEFRAMES
    }


@pytest.mark.parametrize(
    ("timeframe", "cadence", "warns", "fails"),
    [
        (MINUTE, 1, timedelta(minutes=11.25), timedelta(minutes=16.25)),
        (MINUTE, 60, timedelta(hours=2.25), timedelta(hours=3.25)),
        (HOURLY, 60, timedelta(hours=2.25), timedelta(hours=3.25)),
        (DAILY, 1, timedelta(hours=2.25), timedelta(hours=3.25)),
        (WEEKLY, 1, timedelta(hours=54), timedelta(hours=78)),
        (MONTHLY, 1, timedelta(hours=54), timedelta(hours=78)),
    ],
)
def test_a_policy_warns_when_one_materialization_is_missing_and_fails_when_two_are(
    timeframe: Timeframe, cadence: int, warns: timedelta, fails: timedelta
) -> None:
    policy: Any = freshness_policy(timeframe, timedelta(minutes=cadence))

    assert policy.warn_window.to_timedelta() == warns
    assert policy.fail_window.to_timedelta() == fails

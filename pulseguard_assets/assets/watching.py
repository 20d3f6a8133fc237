"""One round of the watchdog: look everywhere, enter what was found, send what is due.

Belongs here: what is looked at, how often, and how long it may take. Does not: the rules
(`alerts/`), nor when a round is made (`automation/watchdog.py`).

No part may silence another. One that fails leaves its areas as they are; the rest is entered and
sent, and then the round fails with what failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache

import psycopg
from psycopg import Connection
from pydantic import SecretStr

from pulseguard_assets.alerts import watch_list
from pulseguard_assets.alerts.channels import Channel, channels_of
from pulseguard_assets.alerts.daemons import look_at_daemons
from pulseguard_assets.alerts.dagster_state import (
    failed_checks,
    failed_runs,
    heartbeats,
    instigators,
    unbroken_since,
)
from pulseguard_assets.alerts.errors import AlertsError
from pulseguard_assets.alerts.incidents import Incident, Round, open_incidents
from pulseguard_assets.alerts.instigators import (
    WATCHDOG,
    WATCHDOG_GAP,
    Watched,
    look_at_instigators,
)
from pulseguard_assets.alerts.looking import enter
from pulseguard_assets.alerts.model import Look
from pulseguard_assets.alerts.outbox import ChannelsFailing, deliver
from pulseguard_assets.alerts.warehouse_rules import (
    Credits,
    look_at_credits,
    look_at_data,
    look_at_partitions,
    look_at_provider,
    look_at_retention,
    look_at_windows,
)
from pulseguard_assets.alerts.work import look_at_checks, look_at_runs
from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.coingecko.backfill import first_within_reach
from pulseguard_assets.coingecko.planner import PlanCannotPay, PollingPlan
from pulseguard_assets.collecting.budget import calls_to_come, polling_of
from pulseguard_assets.collecting.planning import expected_cadence
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.timeframes import DAILY, HOURLY, MONTHLY, Timeframe, bucket_end
from pulseguard_assets.warehouse.ledger import spent_this_month

# Of a tick that is cut at 60 s, sending takes up to 50.
_PER_LOOK = timedelta(seconds=5)
_FOR_ALL = timedelta(seconds=8)
_PER_ENTRY = timedelta(seconds=10)
# A job that runs daily, and its next run: what failed is told until that has gone well.
_RUNS_OF = timedelta(hours=26)


class RoundFailed(AlertsError):  # noqa: N818 - reads as what it says
    """Not everything could be looked at or told. The message names each part and its reason."""


@dataclass(frozen=True)
class Watch:
    """What a round has come to.

    Attributes:
        entered: what it changed; None if nothing could be entered.
        open: what is wrong now, the gravest first.
        problems: what could not be done, a sentence each.
        undelivered: messages that do not get through.
    """

    entered: Round | None
    open: tuple[Incident, ...]
    problems: tuple[str, ...]
    undelivered: ChannelsFailing | None

    @property
    def changed(self) -> bool:
        """Whether an incident was opened, taken for gone, or came back."""
        entered = self.entered
        return entered is not None and entered.opened + entered.resolved + entered.reopened > 0

    @property
    def problem(self) -> AlertsError | None:
        """Why the round has failed, to be raised; None if it did all it should.

        `RoundFailed` if something could not be looked at or entered; else `ChannelsFailing` if not
        all messages were accepted.
        """
        if not self.problems:
            return self.undelivered
        told = [*self.problems, *([str(self.undelivered)] if self.undelivered else [])]
        return RoundFailed(
            "The watchdog could not do everything. The rest was done, and the next round tries "
            "again:\n" + "\n".join(f"- {each}" for each in told)
        )


def watch(
    platform: Platform,
    *,
    now: datetime,
    watched: Sequence[Watched] | None = None,
    timer: Callable[[], float] = time.monotonic,
) -> Watch:
    """Make one round. Repeated at the same instant it changes nothing more.

    Args:
        now: the instant of the look. What is dear is looked at in some minutes only.
        watched: the sensors and schedules that the code defines, to be kept for those who have not
            loaded it. None: those kept last, and everything is looked at whatever the minute.
        timer: seconds that pass, to measure the time of looking by.

    Raises:
        DatabaseUnavailable: there is no database.
        psycopg.Error: it went away.
    """
    channels = _channels(platform.settings.alert_urls)
    with platform.connect() as connection:
        problems: list[str] = []
        look = _look(_Sight(platform, connection, now, watched), problems, timer)
        entered, undelivered = None, None
        _limit(connection, _PER_ENTRY)
        with _noting(problems, "incidents", connection):
            entered = enter(connection, look, platform.settings, channels, now=now)
        try:
            deliver(connection, channels, now=now)
        except ChannelsFailing as failing:
            undelivered = failing
        return Watch(entered, tuple(open_incidents(connection)), tuple(problems), undelivered)


@lru_cache(maxsize=4)
def _channels(urls: tuple[SecretStr, ...]) -> tuple[Channel, ...]:
    """Made once: a channel remembers how long its service wants it to wait between messages."""
    return channels_of(urls)


# --- looking ---


@dataclass
class _Sight:
    """What a look is made with."""

    platform: Platform
    connection: Connection
    now: datetime
    watched: Sequence[Watched] | None

    @cached_property
    def watching_since(self) -> datetime | None:
        """Since when the watchdog has looked without a break; None if it has just begun."""
        return unbroken_since(self.connection, WATCHDOG, now=self.now, gap=WATCHDOG_GAP)

    @cached_property
    def polling(self) -> PollingPlan | None:
        """The schedule of the polls; None if the plan cannot pay for it, which the sensor says."""
        try:
            return polling_of(self.platform, self.connection)
        except PlanCannotPay:
            return None


@dataclass(frozen=True)
class _Part:
    """One look.

    Attributes:
        what: what is looked at, in words.
        every, at: the minutes of the hour in which it is made: those that leave `at` when divided
            by `every`.
    """

    what: str
    look: Callable[[_Sight], Look]
    every: int = 1
    at: int = 0


def _instigators(sight: _Sight) -> Look:
    connection = sight.connection
    if sight.watched is not None:
        watch_list.record(connection, sight.watched)
    return look_at_instigators(
        watch_list.read(connection) if sight.watched is None else sight.watched,
        instigators(connection),
        now=sight.now,
        watching_since=sight.watching_since,
    )


def _daemons(sight: _Sight) -> Look:
    return look_at_daemons(
        heartbeats(sight.connection), now=sight.now, watching_since=sight.watching_since
    )


def _runs(sight: _Sight) -> Look:
    return look_at_runs(failed_runs(sight.connection, since=sight.now - _RUNS_OF))


def _checks(sight: _Sight) -> Look:
    return look_at_checks(failed_checks(sight.connection))


def _data(sight: _Sight) -> Look:
    polling = sight.polling
    if polling is None:
        cadence = expected_cadence(sight.platform.settings)
    else:
        cadence = timedelta(minutes=polling.cadence_minutes)
    return look_at_data(
        sight.connection, now=sight.now, cadence=cadence, watching_since=sight.watching_since
    )


def _provider(sight: _Sight) -> Look:
    return look_at_provider(sight.connection, now=sight.now)


def _credits(sight: _Sight) -> Look:
    polling, now = sight.polling, sight.now
    return look_at_credits(
        sight.connection,
        Credits(
            spent=spent_this_month(sight.connection, now),
            # Where the plan cannot pay, nothing is polled.
            to_come=0 if polling is None else calls_to_come(polling, now),
            allowed=sight.platform.credits_allowed,
            month_end=bucket_end(MONTHLY, now),
            reserved=sight.platform.credits_reserved,
        ),
        now=now,
    )


def _partitions(sight: _Sight) -> Look:
    return look_at_partitions(sight.connection, now=sight.now)


def _hours(sight: _Sight) -> Look:
    return _windows(sight, HOURLY)


def _retention(sight: _Sight) -> Look:
    return look_at_retention(sight.connection, now=sight.now, watching_since=sight.watching_since)


def _days(sight: _Sight) -> Look:
    return _windows(sight, DAILY)


def _windows(sight: _Sight, timeframe: Timeframe) -> Look:
    platform, now = sight.platform, sight.now
    wanted = partitions_of(timeframe, platform.settings.history_start).start
    return look_at_windows(
        sight.connection,
        timeframe,
        now=now,
        watching_since=sight.watching_since,
        not_before=first_within_reach(timeframe, wanted, now=now, plan=platform.plan),
    )


# What is gravest first: should time run out, the last are left for the next round. The dear ones
# lie between the minutes of the rollups and the cleanup.
_PARTS = (
    _Part("sensors and schedules", _instigators),
    _Part("daemons", _daemons),
    _Part("runs", _runs),
    _Part("the newest closes", _data),
    _Part("calls to the provider", _provider),
    _Part("asset checks", _checks),
    _Part("credits", _credits),
    _Part("partitions", _partitions),
    _Part("hours that lack closes", _hours, every=5, at=3),
    _Part("retention", _retention, every=15, at=8),
    _Part("days that lack closes", _days, every=60, at=43),
)


def _look(sight: _Sight, problems: list[str], timer: Callable[[], float]) -> Look:
    look, until = Look(), timer() + _FOR_ALL.total_seconds()
    for part in _PARTS:
        if sight.watched is not None and sight.now.minute % part.every != part.at:
            continue
        left = timedelta(seconds=until - timer())
        if left <= timedelta(0):
            problems.append(f"{part.what}: not looked at, for the looks before took too long.")
            continue
        _limit(sight.connection, min(left, _PER_LOOK))
        with _noting(problems, part.what, sight.connection):
            look += part.look(sight)
    return look


@contextmanager
def _noting(problems: list[str], what: str, connection: Connection) -> Iterator[None]:
    """Note what goes wrong, so that what comes after is done nevertheless."""
    try:
        yield
    except (psycopg.Error, AlertsError) as error:
        if connection.closed:
            raise
        problems.append(f"{what}: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, psycopg.errors.QueryCanceled):
        return (
            "it took too long and was given up. If it lasts, look in pg_stat_activity for what "
            "keeps the database busy."
        )
    return " ".join(str(error).split())


def _limit(connection: Connection, duration: timedelta) -> None:
    milliseconds = max(1, int(duration.total_seconds() * 1_000))
    connection.execute("SELECT set_config('statement_timeout', %s, false)", (str(milliseconds),))

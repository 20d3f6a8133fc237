"""A failed sensor raises an alert: a running platform in every trouble at once, and its alerts."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest
from alerting_support import (
    HOOK_TOKEN,
    KEY,
    MAIL_PASSWORD,
    MINUTES,
    NAMED_WITHIN,
    alerting,
    messages,
    open_incidents,
)
from alerts_support import Sink, serving_mailbox, serving_webhook
from playwright.sync_api import Browser, expect
from up_support import ARTEFACTS, Up, eventually, keep_picture, open_page, utc_now

from pulseguard_assets.simulator.limits import Limits
from pulseguard_assets.simulator.server import RunningSimulator, running_simulator

pytestmark = pytest.mark.timeout(1500)

PRICES = "sensor:coingecko_price_sensor:FAILING"
CADENCE = timedelta(minutes=1)


def _switch_off(browser: Browser, up: Up, sensor: str) -> datetime:
    """Stop a sensor as a person does: by its switch in the web interface."""
    page = open_page(browser, up, f"/locations/pulseguard/sensors/{sensor}")
    switch = page.locator("input[type=checkbox]").first
    expect(switch).to_be_checked()

    def switched_off() -> bool:
        # A page that is drawn anew at that moment loses a click.
        if switch.is_checked():
            page.locator("label:has(input[type=checkbox])").first.click()
        with suppress(AssertionError):
            expect(switch).not_to_be_checked(timeout=20_000)
            return True
        return False

    eventually("it is switched off", switched_off)
    page.close()
    return utc_now()


def _first_tick(up: Up, sensor: str, status: str = "%") -> datetime:
    """When the first tick of a sensor began that has a status like this."""
    ((began,),) = up.rows(
        "SELECT min(timestamp) AT TIME ZONE 'UTC' FROM dagster.job_ticks "
        "WHERE tick_body::json ->> 'job_name' = %s AND status LIKE %s",
        *(sensor, status),
    )
    assert isinstance(began, datetime)
    return began


@dataclass(frozen=True)
class Trouble:
    """A platform with four sensors in trouble, its provider, and whom it tells."""

    up: Up
    provider: RunningSimulator
    hook: Sink
    mail: Sink
    begun: datetime


@pytest.fixture
def trouble(start: Callable[..., Up]) -> Iterator[Trouble]:
    """It has collected a first minute."""
    with (
        running_simulator(coins=50, limits=Limits(host="pro")) as provider,
        serving_webhook() as hook,
        serving_mailbox() as mail,
    ):
        up = alerting(start, provider, hook, mail, definitions="alerting_definitions")
        begun = utc_now()
        eventually("a first minute", lambda: up.query(MINUTES) >= 1)
        yield Trouble(up, provider, hook, mail, begun)


def test_each_failing_sensor_is_named_and_an_outage_is_seen_red_and_told(
    trouble: Trouble, browser: Browser
) -> None:
    up, hook, mail = trouble.up, trouble.hook, trouble.mail
    _each_is_named(up, trouble.begun, _switch_off(browser, up, "stoppable"))
    _the_provider_goes_down(up, trouble.provider, hook, mail)
    _it_is_seen_red_and_its_incident_open(up, browser)
    _a_person_can_read_it(up, browser, hook, mail)


@pytest.mark.soak
def test_every_trouble_is_told_once_by_its_name_and_ends_by_itself(
    trouble: Trouble, browser: Browser
) -> None:
    up, hook, mail = trouble.up, trouble.hook, trouble.mail
    _each_is_named(up, trouble.begun, _switch_off(browser, up, "stoppable"))
    _the_provider_goes_down(up, trouble.provider, hook, mail)
    _it_is_told_once(up, hook, mail)
    trouble.provider.clear_faults()
    # Meanwhile it comes back: what is over is told when it has been so for three minutes.
    _the_daemon_is_gone(up, browser)
    _the_recovery_is_told(hook, mail)
    _a_channel_is_down(up, browser, hook)
    _a_hundred_failures_are_one_incident(up, hook)
    _a_person_can_read_it(up, browser, hook, mail)


def _each_is_named(up: Up, begun: datetime, stopped: datetime) -> None:
    since = {
        "sensor:raising:FAILING": begun,
        "sensor:hanging:HUNG": begun,
        "sensor:forgotten:NEVER": begun,
        "sensor:stoppable:STOPPED": stopped,
    }
    eventually("each is named", lambda: since.keys() <= open_incidents(up).keys(), within=150)
    found = open_incidents(up)
    # A sensor hangs from the begin of its tick on, which a loaded daemon may begin late.
    since["sensor:hanging:HUNG"] = max(begun, _first_tick(up, "hanging"))
    for cause, instant in since.items():
        assert found[cause][0] - instant <= NAMED_WITHIN, cause
    # From a shell in which nothing is set but the folder.
    code, status = up.status("--json")
    told = json.loads(status)
    assert code == 1
    assert since.keys() <= {each["cause"] for each in told["incidents"]}
    assert (told["credits"]["plan"], told["channels"]) == ("pro", ["json (1)", "mailto (2)"])
    assert found.keys() == since.keys(), "nothing else is wrong, and none has two names"


def _the_provider_goes_down(up: Up, provider: RunningSimulator, hook: Sink, mail: Sink) -> None:
    # Of prices alone: at midnight the coins are swept too, and that run would be an incident more.
    provider.fault("server_error", status=503, endpoint="simple_price")
    down = utc_now()
    eventually("the outage is an incident", lambda: PRICES in open_incidents(up), within=180)
    seen = open_incidents(up)[PRICES][0]
    assert seen - _first_tick(up, "coingecko_price_sensor", "FAILURE") <= 2 * CADENCE
    # The poll before the first that failed may have just been made.
    assert seen - down <= 3 * CADENCE
    for sink in (hook, mail):
        eventually("told", lambda sink=sink: messages(sink, "coingecko_price_sensor"), within=60)  # type: ignore[misc]


def _it_is_told_once(up: Up, hook: Sink, mail: Sink) -> None:
    rounds = up.rows("SELECT rounds FROM incidents WHERE cause = %s", PRICES)[0][0]
    eventually(
        "two more rounds of it",
        lambda: (
            up.rows("SELECT rounds FROM incidents WHERE cause = %s", PRICES)[0][0] >= rounds + 2
        ),
        within=180,
    )
    assert not {
        cause for cause in open_incidents(up) if cause.split(":")[0] not in ("sensor", "check")
    }
    for sink in (hook, mail):
        assert len(messages(sink, "coingecko_price_sensor")) == 1, sink.titles()


def _it_is_seen_red_and_its_incident_open(up: Up, browser: Browser) -> None:
    page = open_page(browser, up, "/locations/pulseguard/sensors/coingecko_price_sensor")
    latest = page.get_by_text("Failure", exact=True).first
    expect(latest).to_be_visible()
    colour = latest.evaluate("tag => getComputedStyle(tag).color")
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    assert red > 2 * max(green, blue), colour
    keep_picture(page, "failing_sensor")
    page = open_page(browser, up, "/assets/incidents?view=events")
    expect(page.get_by_text("coingecko_price_sensor fails").first).to_be_visible()
    keep_picture(page, "incident_open")


def _the_recovery_is_told(hook: Sink, mail: Sink) -> None:
    for sink in (hook, mail):
        eventually(
            "the recovery is told",
            lambda sink=sink: messages(sink, "coingecko_price_sensor", "recovered"),  # type: ignore[misc]
            within=420,
        )
        assert len(messages(sink, "coingecko_price_sensor")) == 2, sink.titles()


def _a_channel_is_down(up: Up, browser: Browser, hook: Sink) -> None:
    hook.accepting = False
    _switch_off(browser, up, "close_repair_sensor")
    cause = "sensor:close_repair_sensor:STOPPED"
    eventually("it is an incident", lambda: cause in open_incidents(up), within=150)
    failed = (
        "SELECT count(*) FROM dagster.job_ticks WHERE status = 'FAILURE' "
        "AND tick_body LIKE '%watchdog_schedule%'"
    )
    eventually("the watchdog's tick has failed", lambda: up.query(failed) >= 1, within=150)
    waiting = (
        "SELECT count(*) FROM incident_messages "
        "WHERE sent_at IS NULL AND dropped_at IS NULL AND attempts > 0"
    )
    assert up.query(waiting) >= 1
    code, status = up.status("--json")
    assert code == 1
    assert "json (1)" in json.dumps(json.loads(status))
    hook.accepting = True
    eventually("it arrives", lambda: messages(hook, "close_repair_sensor"), within=300)
    assert len(messages(hook, "close_repair_sensor")) == 1


def _the_daemon_is_gone(up: Up, browser: Browser) -> None:
    daemon = up.pid("daemon")
    # So that nobody starts it again.
    up.process.send_signal(signal.SIGSTOP)
    os.kill(daemon, signal.SIGKILL)
    killed = utc_now()
    eventually("the status is down", lambda: up.status()[0] == 2, within=75)
    assert utc_now() - killed <= timedelta(seconds=60)
    page = open_page(browser, up, "/deployment/daemons")
    expect(page.get_by_text("Running").first).to_be_visible()
    expect(page.get_by_text("Not running")).to_have_count(0)
    keep_picture(page, "daemon_dead_and_green")
    up.process.send_signal(signal.SIGCONT)
    eventually("it is back", lambda: "daemon is back" in up.screen)


def _a_hundred_failures_are_one_incident(up: Up, hook: Sink) -> None:
    failures = (
        "SELECT count(*) FROM dagster.job_ticks WHERE status = 'FAILURE' "
        "AND tick_body::json ->> 'job_name' = 'raising'"
    )
    eventually("100 failing ticks", lambda: up.query(failures) >= 100, within=600)
    found = "SELECT id, occurrences FROM incidents WHERE cause = 'sensor:raising:FAILING'"
    eventually("they are counted", lambda: up.rows(found)[0][1] >= 100, within=150)
    ((_, times),) = up.rows(found)
    assert times <= up.query(failures)
    assert len(messages(hook, "raising")) == 1


def _a_person_can_read_it(up: Up, browser: Browser, hook: Sink, mail: Sink) -> None:
    page = open_page(browser, up, "/assets/incidents?view=overview")
    expect(page.get_by_text("Latest materialization")).to_be_visible()
    expect(page.get_by_text("raising").first).to_be_visible()
    keep_picture(page, "incidents")
    texts = [*hook.received, *mail.received]
    about = next(each for each in texts if "raising" in each.title)
    assert "The tide tables of Atlantis are out of print. Order them again." in about.text
    assert f"http://127.0.0.1:{up.port}/locations/pulseguard/sensors/raising" in about.text
    for each in texts:
        assert len(each.title) <= 80
        assert "Traceback" not in each.text
    told = "".join(each.title + each.text for each in texts) + up.screen
    for log in up.folders.logs.iterdir():
        told += log.read_text("utf-8")
    for secret in (KEY, HOOK_TOKEN, MAIL_PASSWORD):
        assert secret not in told
    ARTEFACTS.mkdir(exist_ok=True)
    (ARTEFACTS / "messages.txt").write_text(
        "\n\n---\n\n".join(f"{each.title}\n\n{each.text}" for each in texts), "utf-8"
    )

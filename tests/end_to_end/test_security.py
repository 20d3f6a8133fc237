"""A platform on somebody else's PostgreSQL, as a mere writer, whose secrets stay where they are."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from alerts_support import Sink, serving_webhook
from playwright.sync_api import Browser, expect
from psycopg import sql
from up_support import PULSEGUARD, Up, eventually, open_page

from pulseguard_assets.simulator.limits import Limits
from pulseguard_assets.simulator.server import RunningSimulator, running_simulator
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.roles import install_roles

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1500)]

LOGIN = "collector"
KEY, PASSWORD = "CG-NurFuerDieseProbe", "Pass-W0rt-der-Datenbank"
HOOK_PASSWORD, HOOK_TOKEN = "Pass-W0rt-des-Hakens", "gehe1mes-T0ken"
PING = "gehe1mer-Herzschlag"
SECRETS = (KEY, KEY.removeprefix("CG-"), PASSWORD, HOOK_PASSWORD, HOOK_TOKEN, PING)


@pytest.fixture
def database(postgres: Any) -> Iterator[str]:
    """The URL of a database in which the login is a writer, with a password in it."""
    with postgres.new_database(postgres.migrated_template()) as dsn:
        install_roles(dsn)
        with connect(dsn) as admin:
            login = sql.Identifier(LOGIN)
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(login))
            admin.execute(sql.SQL("GRANT pulseguard_writer TO {}").format(login))
        yield dsn
    with connect(postgres.dsn) as admin:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(LOGIN)))


class Platform:
    """The platform that runs, and every place where text of it can be read."""

    def __init__(self, up: Up, dsn: str, settings: dict[str, str]) -> None:
        self.up, self.dsn, self._settings = up, dsn, settings

    def one(self, statement: str) -> Any:
        """The single value of a statement, as a superuser."""
        with connect(self.dsn) as admin:
            row = admin.execute(statement.encode()).fetchone()
        return None if row is None else row[0]

    def command_lines(self) -> set[str]:
        """What `ps` shows everybody."""
        up = psutil.Process(self.up.process.pid)
        lines = set()
        for process in [up, *up.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                lines.add(" ".join(process.cmdline()))
        return lines

    def tables(self) -> str:
        """All rows of all tables, ours and Dagster's."""
        with connect(self.dsn) as admin:
            tables = admin.execute(
                "SELECT n.nspname, c.relname FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('public', 'dagster')"
            ).fetchall()
            return "\n".join(
                row[0]
                for table in tables
                for row in admin.execute(
                    sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(*table))
                )
            )

    def files(self) -> Iterator[Path]:
        """All files of the data folder."""
        return (path for path in self.up.data_dir.rglob("*") if path.is_file())

    def contents(self) -> str:
        """What is in them."""
        return "\n".join(path.read_bytes().decode("utf-8", "replace") for path in self.files())

    def commands(self) -> str:
        """What the commands for people print."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PULSEGUARD_")}
        said = []
        for arguments in (
            *(("status",), ("status", "--json"), ("incidents",), ("plan",), ("migrate",)),
            *(("roles",), ("alert-test",), ("collect", "--once")),
        ):
            done = subprocess.run(
                [*PULSEGUARD, *arguments],
                env={**kept, **self._settings},
                cwd=self.up.data_dir.parent,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            said.append(f"{arguments}: {done.stdout}{done.stderr}")
            assert "Traceback" not in said[-1], said[-1]
        return "\n".join(said)

    def pages(self) -> str:
        """What the web interface tells of the instance, its code and what failed."""
        questions = (
            "{ instance { info } }",
            "{ runsOrError { ... on Runs { results { runConfigYaml tags { key value } } } } }",
            "{ workspaceOrError { ... on Workspace { locationEntries { displayMetadata "
            "{ key value } locationOrLoadError { __typename } } } } }",
        )
        return "\n".join(map(self.ask, questions))

    def ask(self, query: str) -> str:
        """What the web interface answers, an error too."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.up.port}/graphql",
            json.dumps({"query": query}).encode(),
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as refused:
            return refused.read().decode()


@contextlib.contextmanager
def _running(
    start: Callable[..., Up], database: str, provider: RunningSimulator, hook: Sink
) -> Iterator[Platform]:
    settings = {
        "PULSEGUARD_DATABASE_URL": database.replace("pulseguard@", f"{LOGIN}:{PASSWORD}@"),
        "PULSEGUARD_PLAN": "pro",
        "PULSEGUARD_API_KEY": KEY,
        "PULSEGUARD_BASE_URL": provider.url,
        "PULSEGUARD_MODE": "20",
        "PULSEGUARD_ALERT_URLS": f"json://me:{HOOK_PASSWORD}@127.0.0.1:{hook.port}/{HOOK_TOKEN}",
        "PULSEGUARD_HEARTBEAT_URL": f"http://127.0.0.1:{hook.port}/{PING}",
        "PULSEGUARD_UI_READ_ONLY": "yes",
    }
    up = start("up", definitions="upkeep_definitions", **settings)
    up.wait_until_up()
    yield Platform(up, database, {**settings, "PULSEGUARD_DATA_DIR": str(up.data_dir)})


def test_a_mere_writer_runs_the_whole_platform_and_no_secret_is_anywhere(
    start: Callable[..., Up], database: str, browser: Browser
) -> None:
    with (
        running_simulator(coins=50, limits=Limits(host="pro")) as provider,
        serving_webhook() as hook,
        _running(start, database, provider, hook) as platform,
    ):
        assert "up to date" in platform.up.screen
        assert "(read-only)" in platform.up.screen
        minutes = "SELECT count(DISTINCT minute_ts) FROM minute_close"
        eventually("a first minute", lambda: platform.one(minutes) >= 1, within=400)
        _nothing_can_be_switched_off(browser, platform.up)

        # What `ps` shows, while a run goes on.
        lines = set[str]()

        def done() -> bool:
            lines.update(platform.command_lines())
            succeeded = "SELECT count(*) FROM dagster.runs WHERE status = 'SUCCESS'"
            return bool(platform.one(succeeded))

        eventually("a run has succeeded", done, within=400)

        # Everything that fails may repeat what it was given.
        provider.fault("raw", status=401, body=json.dumps({"error": f"no such key: {KEY}"}))
        hook.accepting = False
        failed = "SELECT count(*) FROM dagster.job_ticks WHERE status = 'FAILURE'"
        eventually("ticks fail", lambda: platform.one(failed) >= 4, within=400)
        _the_login_is_locked_out_for_a_while(platform)
        provider.clear_faults()

        places = {
            "command lines": "\n".join(lines),
            "tables": platform.tables(),
            "files": platform.contents(),
            "commands": platform.commands(),
            "pages": platform.pages(),
            "screen": platform.up.screen,
        }
        _the_places_were_looked_at(places)
        for place, text in places.items():
            for secret in SECRETS:
                assert secret not in text, (place, text[text.index(secret) - 200 :][:500])
        _only_those_know_who_have_to(platform)
        _nobody_else_may_read(platform)
        assert platform.up.stop(signal.SIGINT) < 20
        assert platform.up.code == 0


def _nothing_can_be_switched_off(browser: Browser, up: Up) -> None:
    page = open_page(browser, up, "/locations/pulseguard/sensors/coingecko_price_sensor")
    switch = page.locator("input[type=checkbox]").first
    expect(switch).to_be_checked(timeout=120_000)
    expect(switch).to_be_disabled()
    page.close()


def _the_login_is_locked_out_for_a_while(platform: Platform) -> None:
    with connect(platform.dsn) as admin:
        login = sql.Identifier(LOGIN)
        admin.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(login))
        try:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s",
                (LOGIN,),
            )
            eventually("it is noticed", lambda: "The database is away" in platform.up.screen)
            eventually(
                "the daemon says so", lambda: "not permitted to log in" in platform.contents()
            )
        finally:
            admin.execute(sql.SQL("ALTER ROLE {} LOGIN").format(login))
    eventually("it is back", lambda: "The database is back" in platform.up.screen)


def _the_places_were_looked_at(places: dict[str, str]) -> None:
    for place, text in {
        "command lines": "multiprocessing",
        "tables": "no such key: ***",
        "files": "not permitted to log in",
        "commands": "minute_close",
        "pages": "PostgresRunStorage",
        "screen": "PulseGuard is running",
    }.items():
        assert text in places[place], f"or {place} is not looked at"


def _only_those_know_who_have_to(platform: Platform) -> None:
    for child in ("webserver", "daemon"):
        known = "\n".join(psutil.Process(platform.up.pid(child)).environ().values())
        assert PASSWORD in known, "Dagster's own way to its tables"
        for secret in (KEY, HOOK_TOKEN, PING):
            assert secret not in known, child


def _nobody_else_may_read(platform: Platform) -> None:
    """Every file is closed to other users, or says nothing but who runs here and why."""
    root = platform.up.data_dir
    open_to_all = {"platform.lock", "purpose", "processes.json"}
    for path in platform.files():
        above = [each for each in path.parents if each.is_relative_to(root) and each != root]
        closed = any(not stat.S_IMODE(each.stat().st_mode) & 0o077 for each in [path, *above])
        assert closed or path.name in open_to_all, path

"""The command `pulseguard`.

Belongs here: options, and turning what is known to go wrong into one sentence. Does not: work.

Commands of other rooms are loaded when they are called: `pulseguard --help` imports neither
Dagster nor polars, nor a web server.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pulseguard_assets.alerts.errors import AlertsError
from pulseguard_assets.coingecko.errors import ProviderError
from pulseguard_assets.coingecko.planner import (
    PlanCannotPay,
    PlanningRow,
    planning_table,
    render_table,
)
from pulseguard_assets.coingecko.plans import PLANS, plan_for
from pulseguard_assets.collecting.errors import CollectingError
from pulseguard_assets.collecting.planning import COINS_THERE_ARE, polling_by_settings
from pulseguard_assets.running.address import AddressUnusable
from pulseguard_assets.running.demo import demo_settings, folder_of, free_port
from pulseguard_assets.running.in_force import settings_in_force
from pulseguard_assets.running.instance import Folders, InstanceError, running_pid
from pulseguard_assets.running.platform import Options, up
from pulseguard_assets.running.polling import in_words
from pulseguard_assets.running.screen import Screen
from pulseguard_assets.running.supervisor import ChildFailed
from pulseguard_assets.settings import Settings, SettingsError, load_settings
from pulseguard_assets.warehouse.account import bundled_installation
from pulseguard_assets.warehouse.at_hand import dsn_at_hand, dsn_in_use
from pulseguard_assets.warehouse.connection import DatabaseUnavailable, UnsupportedPostgres
from pulseguard_assets.warehouse.embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    FolderInUse,
    running_dsn,
)
from pulseguard_assets.warehouse.failures import what_failed
from pulseguard_assets.warehouse.migrations import MigrationError, migrate
from pulseguard_assets.warehouse.roles import ROLES, RolesRefused, install_roles

F = TypeVar("F", bound=Callable[..., Any])

# Their messages are sentences for the user; a traceback would only hide them.
KNOWN_ERRORS = (
    AddressUnusable,
    AlertsError,
    ChildFailed,
    CollectingError,
    DatabaseUnavailable,
    EmbeddedPostgresError,
    FolderInUse,
    InstanceError,
    MigrationError,
    PlanCannotPay,
    ProviderError,
    RolesRefused,
    SettingsError,
    UnsupportedPostgres,
)
EXIT_KNOWN_ERROR = 2

# Name -> where it is, and its line in the help; without one it is not for people, and not shown.
LoadedWhenCalled = Mapping[str, tuple[str, str]]
_OF_MAIN: LoadedWhenCalled = {
    "alert-test": (
        "pulseguard_assets.alerts.command:alert_test",
        "Send a test message to each channel of alerts.",
    ),
    "collect": (
        "pulseguard_assets.collecting.command:collect",
        "Collect once, without Dagster.",
    ),
    "incidents": (
        "pulseguard_assets.alerts.command:list_incidents",
        "What is wrong now, and what to do about it.",
    ),
    "lookout": ("pulseguard_assets.alerts.lookout:lookout", ""),
    "simulate": (
        "pulseguard_assets.simulator.command:simulate",
        "Serve simulated prices over CoinGecko's API.",
    ),
    "status": (
        "pulseguard_assets.alerts.status_command:status_command",
        "Is it well? Exit code 0, 1 or 2.",
    ),
}
_OF_PLAN: LoadedWhenCalled = {
    "backfill": (
        "pulseguard_assets.collecting.plan_command:backfill",
        "What taking closes of the past from history costs.",
    ),
}
# They are about the platform that runs, whatever shell they are typed in. So are those that can be
# about the demo, which see to that themselves.
_BESIDE_A_PLATFORM = frozenset(("alert-test", "collect", "incidents", "migrate", "plan", "roles"))


class Commands(click.Group):
    """A group whose commands end with a sentence and exit code 2 on known errors."""

    def __init__(self, *args: Any, loaded_when_called: LoadedWhenCalled, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loaded_when_called = loaded_when_called

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._loaded_when_called})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._loaded_when_called:
            # Asked for by the help, which shows one line of it; a call goes on to the real one.
            line = self._loaded_when_called[cmd_name][1]
            return click.Command(cmd_name, short_help=line, hidden=not line)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self._loaded_when_called:
            command = _load(self._loaded_when_called[name][0])
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (*KNOWN_ERRORS, psycopg.Error) as error:
            said = what_failed(error) if isinstance(error, psycopg.Error) else str(error)
            click.echo(f"pulseguard: {said}", err=True)
            ctx.exit(EXIT_KNOWN_ERROR)


def _load(where: str) -> click.Command:
    module, _, name = where.partition(":")
    command: click.Command = getattr(importlib.import_module(module), name)
    return command


@click.group(
    cls=Commands,
    loaded_when_called=_OF_MAIN,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Crypto prices, collected every minute into PostgreSQL, by Dagster.

    Settings are read from environment variables (PULSEGUARD_...) and from the file .env. What is
    set in neither, commands beside a running platform take from it.
    """
    if ctx.invoked_subcommand in _BESIDE_A_PLATFORM:
        ctx.with_resource(settings_in_force())


def _listening(command: F) -> F:
    for option in (
        click.option("--verbose", "-v", is_flag=True, help="Show what the processes print."),
        click.option("--port", type=int, help="Port of the web interface  [PULSEGUARD_PORT]"),
        click.option("--host", help="Address it listens on  [PULSEGUARD_HOST]"),
    ):
        command = option(command)
    return command


@main.command("up")
@_listening
@click.option("--demo", is_flag=True, help="The same as `pulseguard demo`.")
def up_command(host: str | None, port: int | None, verbose: bool, demo: bool) -> None:
    """Start the whole platform, and stop it with Ctrl-C.

    Without PULSEGUARD_DATABASE_URL it brings a PostgreSQL of its own. Exit code 0 after a stop
    that was asked for, 2 when it could not start, 130 after a second Ctrl-C.
    """
    listening = _given(host=host, port=port)
    if demo:
        _demo(listening, verbose=verbose)
    else:
        _up(load_settings(**listening), _screen(verbose), Options())


@main.command("demo")
@_listening
def demo_command(host: str | None, port: int | None, verbose: bool) -> None:
    """Start the platform on simulated prices: no key, no internet.

    Its data is kept apart, in the folder `demo` of the data folder.
    """
    _demo(_given(host=host, port=port), verbose=verbose)


def _demo(listening: dict[str, Any], *, verbose: bool) -> None:
    simulator_port = free_port()
    settings = demo_settings(simulator_port, **listening)
    _up(settings, _screen(verbose), Options(simulator_port=simulator_port))


def _up(settings: Settings, screen: Screen, options: Options) -> None:
    if settings.alert_urls:
        # Before anything starts; only here, for it takes as long as all other imports together.
        from pulseguard_assets.alerts.channels import channels_of

        channels_of(settings.alert_urls)
    up(settings, screen, options)


def _screen(verbose: bool) -> Screen:
    return Screen(click.echo, verbose=verbose)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@main.command("reload")
@click.option("--demo", is_flag=True, help="Of the running demo.")
def reload_command(demo: bool) -> None:
    """Restart the code server of a running platform, with the code as it is now."""
    folders = Folders(folder_of(load_settings(), demo=demo))
    pid = running_pid(folders)
    if pid is None:
        raise InstanceError(f"No PulseGuard runs in {folders.root}. Start it: pulseguard up")
    os.kill(pid, signal.SIGUSR1)
    click.echo(f"Told process {pid}; it says when the code server is back.")


@main.command("migrate")
def migrate_command() -> None:
    """Bring the database to the schema of this version.

    `pulseguard up` does so by itself.
    """
    settings = load_settings()
    dsn = dsn_at_hand(settings)
    if dsn is None:
        with EmbeddedPostgres(settings.data_dir, progress=click.echo) as embedded_dsn:
            applied = migrate(embedded_dsn)
    else:
        applied = migrate(dsn)
    for version in applied:
        click.echo(f"applied {version}")
    click.echo("The database is up to date.")


@main.command("roles")
def roles_command() -> None:
    """Make roles by which people share the database, and grant them what they may.

    To be run once, by whoever may create roles and owns the database.
    """
    made = install_roles(dsn_in_use(load_settings()))
    for role, purpose in ROLES.items():
        click.echo(f"{role} ({'made' if role in made else 'known'}): {purpose.partition(': ')[2]}")
    click.echo(f"In use. Grant one to a login, for example: GRANT {next(iter(ROLES))} TO alice")


@main.group("plan", cls=Commands, loaded_when_called=_OF_PLAN, invoke_without_command=True)
@click.option("--plan", "plans", multiple=True, type=click.Choice(list(PLANS)), help="Repeatable.")
@click.option(
    "--coins", multiple=True, type=click.IntRange(min=1), help="How many coins. Repeatable."
)
@click.pass_context
def plan_command(ctx: click.Context, plans: tuple[str, ...], coins: tuple[int, ...]) -> None:
    """How often a plan can poll, and how many calls that takes.

    Without options: for the settings in force. With --plan or --coins: for others, with the
    reserve in force; what is left out is then all plans, or 1,000, 5,000 and all coins.
    """
    if ctx.invoked_subcommand is not None:
        if plans or coins:
            raise click.UsageError(f"Write --plan and --coins after `{ctx.invoked_subcommand}`.")
        return
    settings = load_settings()
    if not plans and not coins:
        polling = polling_by_settings(settings)
        click.echo(render_table([PlanningRow(polling.plan, polling.coins, polling, None)]))
        click.echo(f"\nThese settings poll {in_words(polling)}.")
        return
    rows = planning_table(
        [plan_for(name) for name in plans or PLANS],
        coins or (1_000, 5_000, COINS_THERE_ARE),
        reserve_percent=settings.reserve_percent,
    )
    click.echo(render_table(rows))
    for row in rows:
        if row.refusal is not None:
            click.echo(f"\n{row.refusal}")


@main.command(
    "psql", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option("--demo", is_flag=True, help="Open the database of the demo.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def psql_command(demo: bool, arguments: tuple[str, ...]) -> None:
    """Open the database in psql, which comes with PulseGuard.

    ARGUMENTS go to psql: pulseguard psql -c "SELECT count(*) FROM minute_close"
    """
    with settings_in_force(demo=demo):
        settings = load_settings()
    data_dir = folder_of(settings, demo=demo)
    dsn = running_dsn(data_dir) if demo else dsn_at_hand(settings)
    if dsn is None:
        raise InstanceError(
            f"The embedded PostgreSQL of {data_dir} does not run. Start it in another terminal: "
            f"pulseguard {'demo' if demo else 'up'}"
        )
    parameters = conninfo_to_dict(dsn)
    password = parameters.pop("password", None)
    # Not on the command line, which every user of the machine can read.
    environment = {**os.environ, **({} if password is None else {"PGPASSWORD": str(password)})}
    program = _psql()
    command = [program, make_conninfo("", **parameters), *arguments]
    os.execve(program, command, environment)  # noqa: S606 - no shell is the point


def _psql() -> str:
    try:
        bundled = bundled_installation() / "bin" / "psql"
    except EmbeddedPostgresError:
        bundled = Path("psql")
    found = shutil.which(bundled) or shutil.which("psql")
    if found is None:
        raise InstanceError("psql is not installed here. Install a PostgreSQL client.")
    return found


@main.command("version")
def version_command() -> None:
    """Print the version."""
    click.echo(importlib.metadata.version("pulseguard"))


if __name__ == "__main__":
    main()

"""The processes a platform consists of: what is run, in which environment, and how it is asked.

Belongs here: command lines and environments. Does not: running them (`supervisor.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from pulseguard_assets.resources import shipped
from pulseguard_assets.running.instance import Folders
from pulseguard_assets.running.leftovers import MARK
from pulseguard_assets.running.load_error import load_error
from pulseguard_assets.running.probes import code_server_probe, http_probe
from pulseguard_assets.running.supervisor import ChildSpec
from pulseguard_assets.settings import PREFIX, SECRET_FIELDS, Settings, variable_of
from pulseguard_assets.warehouse.connection import dagster_url

LOCATION = "pulseguard"
CODE_SERVER = "code-server"
SIMULATOR = "simulator"
DAEMON = "daemon"
LOOKOUT = "lookout"
# Whether the database that a child is told of by its address is the embedded one.
EMBEDDED = "PULSEGUARD_INTERNAL_EMBEDDED"

# The default, the number of processors plus four, is 6 on a small machine: eight ticks at once
# (dagster.yaml) would leave no thread for the web interface. Threads are made when needed.
_CODE_SERVER_THREADS = "20"


def environment(
    settings: Settings,
    folders: Folders,
    dsn: str,
    inherited: Mapping[str, str] | None = None,
    *,
    dagster_role: str | None = None,
) -> dict[str, str]:
    """The environment of every child: the settings in force, spelt out.

    The children read no `.env` of their own and see no variable that `up` did not read, so that
    there is one truth. `dsn` takes the place of the database setting, which may be empty;
    `dagster_role` is whom Dagster acts as in it.
    """
    return {
        **_inherited(inherited),
        **_settings_as_variables(settings),
        "PULSEGUARD_DATABASE_URL": dsn,
        EMBEDDED: "yes" if settings.database_url is None else "no",
        "PULSEGUARD_DAGSTER_DATABASE_URL": dagster_url(dsn, role=dagster_role),
        MARK: str(folders.code_server_socket),
        "PULSEGUARD_INTERNAL_COMPUTE_LOGS": str(folders.compute_logs),
        "DAGSTER_HOME": str(folders.dagster_home),
    }


def _inherited(given: Mapping[str, str] | None) -> dict[str, str]:
    """What a child gets of our environment: no setting, and nothing that steers Dagster.

    PYTHONSAFEPATH stays out although every child is started by `python -m`: Dagster takes the
    first entry of the path for the script's folder and removes it, whatever it is. The folder
    they run in holds no modules. PGTZ outranks the time zone that a URL asks for, and Dagster would
    then write its times, which bear no zone, by hours off.
    """
    ours = (PREFIX, "DAGSTER_", "PYTHONSAFEPATH", "PGTZ")
    source = os.environ if given is None else given
    return {
        **{name: value for name, value in source.items() if not name.upper().startswith(ours)},
        # Lines reach the log when they are printed, not when 8 KB of them are together.
        "PYTHONUNBUFFERED": "1",
        # glibc gives every thread a heap of its own and returns little of it.
        "MALLOC_ARENA_MAX": "2",
    }


def _settings_as_variables(settings: Settings) -> dict[str, str]:
    shown = {name: value for name, value in settings.public().items() if value is not None}
    secrets = {name: getattr(settings, name) for name in SECRET_FIELDS}
    # An address may hold commas, but no line break.
    urls = "\n".join(url.get_secret_value() for url in settings.alert_urls)
    secrets["alert_urls"] = SecretStr(urls)
    # An empty list of coins is written as a comma: an empty variable counts as not set.
    variables = {variable_of(name): str(value) or "," for name, value in shown.items()}
    for name, secret in secrets.items():
        if secret is not None:
            variables[variable_of(name)] = secret.get_secret_value()
    return variables


def _for_dagster_alone(variables: Mapping[str, str]) -> dict[str, str]:
    """What a process needs that runs no code of ours: nothing that is secret but Dagster's URL.

    The web interface answers strangers: what it does not know, nobody gets out of it.
    """
    secrets = {variable_of(name) for name in SECRET_FIELDS}
    return {name: value for name, value in variables.items() if name not in secrets}


def code_server(settings: Settings, folders: Folders, variables: Mapping[str, str]) -> ChildSpec:
    """The process that holds our code: evaluates sensors and starts runs.

    `dagster api grpc` rather than `dagster code-server start`: the latter is a proxy (70 MB) in
    front of this one, restarts it when the UI says "reload", and hides its death. Here reloading
    is restarting, by `pulseguard reload`.
    """
    return ChildSpec(
        name=CODE_SERVER,
        command=(
            *(sys.executable, "-m", "dagster", "api", "grpc"),
            *("--socket", str(folders.code_server_socket)),
            *("--module-name", settings.definitions, "--empty-working-directory"),
            *("--location-name", LOCATION, "--max-workers", _CODE_SERVER_THREADS),
            # Run workers are to be this interpreter, not a `dagster` found on the PATH.
            "--use-python-environment-entry-point",
        ),
        environment=variables,
        directory=folders.dagster_home,
        probe=code_server_probe(folders.code_server_socket),
        stops_group=True,
        # Of which a real provider has no child.
        needs=(SIMULATOR,),
        explanation=_why_code_does_not_load,
    )


def _why_code_does_not_load(log: Path) -> str | None:
    error = load_error(log, starts=1)
    if error is None:
        return None
    return (
        f"The code cannot be loaded: {error.rstrip('.')}. Mend it, or name code that can be in "
        f"{variable_of('definitions')}."
    )


def webserver(settings: Settings, folders: Folders, variables: Mapping[str, str]) -> ChildSpec:
    """The web interface."""
    return ChildSpec(
        name="webserver",
        command=(
            *(sys.executable, "-m", "dagster_webserver"),
            *("--workspace", str(shipped("workspace.yaml"))),
            *("--host", settings.host, "--port", str(settings.port)),
            # Prices come once a minute: an open page need not ask every 2 seconds.
            *("--live-data-poll-rate", "5000"),
            *(["--read-only"] if settings.ui_read_only else []),
        ),
        environment=_for_dagster_alone(variables),
        directory=folders.dagster_home,
        probe=http_probe(reachable(settings.host), settings.port, "/server_info"),
        needs=(CODE_SERVER,),
    )


def daemon(folders: Folders, variables: Mapping[str, str]) -> ChildSpec:
    """The process that ticks sensors and schedules, starts queued runs and watches them."""
    return ChildSpec(
        name=DAEMON,
        command=(
            *(sys.executable, "-m", "dagster._daemon", "run"),
            *("--workspace", str(shipped("workspace.yaml"))),
        ),
        environment=_for_dagster_alone(variables),
        directory=folders.dagster_home,
        needs=(CODE_SERVER,),
    )


def lookout(folders: Folders, variables: Mapping[str, str]) -> ChildSpec:
    """The process that tells of what Dagster cannot tell of itself: that it does not run."""
    return ChildSpec(
        name=LOOKOUT,
        command=(sys.executable, "-m", "pulseguard_assets.cli", LOOKOUT),
        environment=variables,
        directory=folders.dagster_home,
    )


def simulator(port: int, folders: Folders, inherited: Mapping[str, str] | None = None) -> ChildSpec:
    """A CoinGecko of our own, for `pulseguard demo`."""
    return ChildSpec(
        name=SIMULATOR,
        command=(
            *(sys.executable, "-m", "pulseguard_assets.cli", "simulate"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ),
        environment=_inherited(inherited),
        directory=folders.dagster_home,
        # Not the API: a probe there would count as a call and fail by the faults it is asked for.
        probe=http_probe("127.0.0.1", port, "/admin"),
    )


def reachable(host: str) -> str:
    """The address by which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound

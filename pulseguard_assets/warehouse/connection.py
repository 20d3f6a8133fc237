"""Connections to PostgreSQL, and the URL by which Dagster reaches the same database.

Belongs here: how to connect, and what to say when it fails. Does not: any statement about closes.
"""

from __future__ import annotations

import math
from datetime import timedelta
from urllib.parse import quote

import psycopg
from psycopg import conninfo, sql

from pulseguard_assets.warehouse.failures import advice_for

OLDEST_MAJOR, NEWEST_MAJOR = 15, 18
DAGSTER_SCHEMA = "dagster"
# Owns that schema where roles are in use: see `roles.py`.
WRITER_ROLE = "pulseguard_writer"

_SCHEMA_LOCK = 0x50554C5345  # "PULSE"
_CONNECT_TIMEOUT = timedelta(seconds=10)

# A peer that vanishes (a laptop asleep, a NAT that forgot us) must not hold a sensor for hours:
# noticed after 30 + 3 * 10 s of silence, or when sent data stays unacknowledged for a minute.
_KEEPALIVE = {
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}

_CHECK = "Check that the server runs and that PULSEGUARD_DATABASE_URL is right."

_BAD_URL = (
    "PULSEGUARD_DATABASE_URL is not a URL of PostgreSQL. Write it as "
    "postgresql://user:password@host:5432/database, with special characters in the password "
    "percent-encoded (@ as %40, : as %3A, / as %2F)."
)


class DatabaseUnavailable(RuntimeError):  # noqa: N818 - reads as what it says
    """No connection could be made. The message names the setting and never holds the password."""


class UnsupportedPostgres(RuntimeError):  # noqa: N818
    """The server's version is not one that PulseGuard is tested on."""


def connect(
    dsn: str,
    *,
    application_name: str = "pulseguard",
    autocommit: bool = True,
    connect_timeout: timedelta = _CONNECT_TIMEOUT,
    statement_timeout: timedelta | None = None,
    lock_timeout: timedelta | None = None,
) -> psycopg.Connection:
    """Connect, with the session in UTC whatever the server, the role or PGTZ say.

    Args:
        dsn: a `postgresql://` URL or a libpq connection string. What it says about keepalives and
            options is kept.
        application_name: shown in `pg_stat_activity`.
        autocommit: every statement commits by itself, outside `with connection.transaction()`.
        connect_timeout: for each host of the URL; at least 2 s.
        statement_timeout: cancel a statement that runs longer; None leaves the server's own.
        lock_timeout: cancel a statement that waits longer for a lock; None leaves the server's.

    Raises:
        DatabaseUnavailable: the URL is malformed, or the server cannot be reached or refuses.
        UnsupportedPostgres: it is not PostgreSQL 15 to 18.
    """
    parameters = _parse(dsn)
    options = [parameters.get("options", ""), "-c TimeZone=UTC"]
    if statement_timeout is not None:
        options.append(f"-c statement_timeout={_milliseconds(statement_timeout)}")
    if lock_timeout is not None:
        options.append(f"-c lock_timeout={_milliseconds(lock_timeout)}")
    settings = {
        **_KEEPALIVE,
        **parameters,
        "options": " ".join(option for option in options if option),
        "application_name": application_name,
        "client_encoding": "utf8",
        # libpq takes whole seconds, and reads 1 as 2 and 0 as for ever.
        "connect_timeout": str(max(2, math.ceil(connect_timeout.total_seconds()))),
    }
    try:
        connection = psycopg.connect(conninfo.make_conninfo("", **settings), autocommit=True)
    except psycopg.Error as error:
        # Without its cause: nobody vouches that libpq never repeats a piece of the URL.
        raise DatabaseUnavailable(_unavailable(parameters, error)) from None
    try:
        _settle(connection, autocommit=autocommit)
    except BaseException:
        connection.close()
        raise
    return connection


def _settle(connection: psycopg.Connection, *, autocommit: bool) -> None:
    """Check the server, and make good what its start-up could not promise."""
    major = connection.info.server_version // 10_000
    if not OLDEST_MAJOR <= major <= NEWEST_MAJOR:
        raise UnsupportedPostgres(
            f"The server of PULSEGUARD_DATABASE_URL is PostgreSQL {major}; PulseGuard works with "
            f"{OLDEST_MAJOR} to {NEWEST_MAJOR}. Name another server there, or leave it empty to "
            "use the embedded one."
        )
    # PGTZ in the environment comes after our options and wins over them. Told by the server at
    # connection, so looking costs nothing.
    if connection.info.parameter_status("TimeZone") != "UTC":
        connection.execute("SET TIME ZONE 'UTC'")
    connection.autocommit = autocommit


def _milliseconds(duration: timedelta) -> int:
    # 0 would switch the limit off.
    return max(1, round(duration.total_seconds() * 1000))


def _parse(dsn: str) -> dict[str, str]:
    try:
        parsed = conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:
        raise DatabaseUnavailable(_BAD_URL) from None
    parameters = {name: str(value) for name, value in parsed.items() if value is not None}
    ports = parameters.get("port", "").split(",")
    # An unencoded @ : or / in a password ends up in the host or the port, and libpq would repeat
    # it in its message.
    if "@" in parameters.get("host", "") or not all(not port or port.isdigit() for port in ports):
        raise DatabaseUnavailable(_BAD_URL)
    return parameters


def _unavailable(parameters: dict[str, str], error: psycopg.Error) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    password = parameters.get("password")
    if password:
        said = said.replace(password, "***")
    where = parameters.get("host") or parameters.get("hostaddr") or "the local socket"
    return (
        f"Cannot connect to PostgreSQL (database {parameters.get('dbname', 'by default')} at "
        f"{where}): {said}. {advice_for(error, otherwise=_CHECK)}"
    )


def dagster_url(dsn: str, *, role: str | None = None) -> str:
    """Return the URL by which Dagster keeps its tables in schema `dagster` of the same database.

    The driver is named: SQLAlchemy 2.1 reads a bare `postgresql://` as psycopg 3, and
    dagster-postgres then fails at the first asset event. The time zone is set because Dagster
    stores `CURRENT_TIMESTAMP` in columns without one and reads them as UTC.

    Args:
        dsn: the database.
        role: whom Dagster acts as, and so whom its tables belong to: see `ensure_dagster_schema`.

    Raises:
        DatabaseUnavailable: the URL is malformed.
    """
    parameters = {"connect_timeout": "10", "application_name": "dagster", **_parse(dsn)}
    options = [parameters.get("options", ""), f"-csearch_path={DAGSTER_SCHEMA}", "-cTimeZone=UTC"]
    options += [] if role is None else [f"-crole={role}"]
    parameters["options"] = " ".join(option for option in options if option)
    user, password = parameters.pop("user", ""), parameters.pop("password", "")
    login = _quoted(user) + (f":{_quoted(password)}" if password else "")
    host, port = parameters.get("host", ""), parameters.get("port", "")
    place = ""
    # Sockets and lists of hosts have no place before the slash.
    if host and not host.startswith("/") and "," not in host:
        del parameters["host"]
        parameters.pop("port", None)
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    database = parameters.pop("dbname", user)
    # SQLAlchemy 2.0, the last on Python 3.10, does not decode the name in its place in the path.
    if _quoted(database) != database:
        parameters["dbname"], database = database, ""
    query = "&".join(f"{name}={_quoted(value)}" for name, value in parameters.items())
    return f"postgresql+psycopg2://{login}{'@' if login else ''}{place}/{database}?{query}"


def _quoted(text: str) -> str:
    # Blanks as %20: libpq does not read + as a blank.
    return quote(text, safe="")


# Dagster's tables are altered when it is upgraded, by whichever login runs the platform then. So
# they must not belong to the one that ran it first.
_DAGSTERS_ROLE = """
SELECT CASE WHEN pg_has_role(nspowner, 'MEMBER') THEN pg_get_userbyid(nspowner) END
FROM pg_namespace WHERE nspname = %s AND pg_get_userbyid(nspowner) = %s
"""


def ensure_dagster_schema(dsn: str) -> str | None:
    """Make the schema of Dagster's tables, which Dagster does not do itself.

    Several starters may call this at once.

    Returns:
        Whom Dagster shall act as: the writers' role where it owns the schema and this login
        belongs to it, else None.

    Raises:
        DatabaseUnavailable: the database cannot be reached, or the role may not make schemas.
        UnsupportedPostgres: it is not PostgreSQL 15 to 18.
    """
    name = sql.Identifier(DAGSTER_SCHEMA)
    with connect(dsn, autocommit=False) as connection:
        # CREATE SCHEMA IF NOT EXISTS is not safe against another one at the same moment.
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        known = connection.execute("SELECT to_regnamespace(%s)", (DAGSTER_SCHEMA,)).fetchone()
        if known is not None and known[0] is not None:
            found = connection.execute(_DAGSTERS_ROLE, (DAGSTER_SCHEMA, WRITER_ROLE)).fetchone()
            return None if found is None else found[0]
        try:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        except psycopg.errors.InsufficientPrivilege:
            raise DatabaseUnavailable(
                f"The role {connection.info.user} of PULSEGUARD_DATABASE_URL may not make the "
                f"schema {DAGSTER_SCHEMA}. As the owner of the database, run: GRANT CREATE ON "
                f"DATABASE {connection.info.dbname} TO {connection.info.user}"
            ) from None
        connection.execute(
            sql.SQL("COMMENT ON SCHEMA {} IS 'The tables of Dagster itself'").format(name)
        )
    return None

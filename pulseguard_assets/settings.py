"""Every setting of PulseGuard, read and validated once, before anything starts.

Belongs here: what can be set, its default, and the sentence a user reads when a value is wrong.
Does not: what a plan of the provider costs (`coingecko/plans.py`) or how long a cadence must be
(`coingecko/planner.py`). This module imports nothing of ours and asks neither clock nor network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from platformdirs import user_data_path
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

PREFIX = "PULSEGUARD_"
DOTENV = ".env"

PLAN_NAMES = ("keyless", "demo", "basic", "analyst", "lite", "pro", "enterprise")

# Set by PulseGuard for its own child processes, or by its test suite: known, but not settings.
INTERNAL_VARIABLES = frozenset(
    {
        "PULSEGUARD_DAGSTER_DATABASE_URL",
        "PULSEGUARD_CODE_SERVER_SOCKET",
        "PULSEGUARD_CODE_SERVER_HOST",
        "PULSEGUARD_CODE_SERVER_PORT",
        "PULSEGUARD_SAMPLES",
    }
)
INTERNAL_PREFIXES = ("PULSEGUARD_INTERNAL_", "PULSEGUARD_TEST_")

# Settings that are shown nowhere.
SECRET_FIELDS = ("database_url", "api_key", "heartbeat_url", "alert_urls")

# How long the schema keeps each table unless told otherwise. A test holds these figures
# equal to `timeframes.py`, which this module may not import.
SHIPPED_RETENTION: Mapping[str, timedelta] = {
    "keep_minute": timedelta(minutes=60),
    "keep_hourly": timedelta(hours=24),
    "keep_daily": timedelta(days=7),
    "keep_weekly": timedelta(weeks=52),
    "keep_collection_status": timedelta(days=30),
}

_MASK = "***"
# Kinds of alert addresses that are named. Others are not, for Apprise has not been asked, and what
# stands before the colon of an address written wrong may be a piece of a secret.
_NAMED_KINDS = frozenset(
    (
        *("discord", "gchat", "gotify", "gotifys", "ifttt", "json", "jsons", "mailgun", "mailto"),
        *("mailtos", "matrix", "matrixs", "mmost", "mmosts", "ntfy", "ntfys", "opsgenie"),
        *("pagerduty", "pbul", "pover", "rocket", "rockets", "sendgrid", "ses", "signal"),
        *("slack", "sns", "tgram", "twilio", "whatsapp", "workflows", "wxteams", "xml", "xmls"),
        *("zulip", "http", "https"),
    )
)
_OTHER_KIND = "other"
_NAMED_MODES: Mapping[str, int | None] = {"top1000": 1000, "top5000": 5000, "complete": None}
_LONGEST_NAME = 60
_LONGEST_KEEP = timedelta(days=36_500)
_UNITS = ("minute", "hour", "day", "week")
_OUR_DEFINITIONS = "pulseguard_assets.definitions"


class SettingsError(ValueError):
    """The settings cannot be used. The message has one line for each problem.

    Attributes:
        variables: the environment variables concerned, in the order of the lines.
    """

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        found = list(problems)
        self.variables = tuple(variable for variable, _ in found)
        lines = [f"  {variable}: {sentence}" for variable, sentence in found]
        super().__init__("\n".join(["PulseGuard cannot start with these settings:", *lines]))


def variable_of(field: str) -> str:
    """The environment variable that sets `field`, e.g. `PULSEGUARD_API_KEY` for `api_key`."""
    return f"{PREFIX}{field.upper()}"


# --- one value: text (or a ready value) in, typed value out; ValueError carries the sentence ---


def _shown(given: Any) -> str:
    """What was given, fit for an error message: short, and never something like a key."""
    text = str(given).strip()
    if re.match(r"(?i)cg-|[a-z][a-z0-9+.-]*://", text):
        return "the value (not shown, for it looks like a secret)"
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _whole(lowest: int, highest: int) -> Callable[[Any], Any]:
    def parse(given: Any) -> Any:
        if given is None:
            return None
        text = str(given).strip().replace("_", "")
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text) and lowest <= int(text) <= highest:
            return int(text)
        raise ValueError(
            f"{_shown(given)} is not a whole number from {lowest} to {highest}; "
            f"write for example {lowest}."
        )

    return parse


def _yes_or_no(given: Any) -> bool:
    word = str(given).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{_shown(given)} is neither yes nor no; write yes or no.")


def _percent(given: Any) -> Decimal:
    try:
        value = Decimal(str(given).strip().removesuffix("%").strip())
    except InvalidOperation:
        value = Decimal("NaN")
    # A NaN compares as neither inside nor outside, so it is asked for by name.
    if value.is_nan() or not 0 <= value <= 90:
        raise ValueError(f"{_shown(given)} is not a percentage from 0 to 90; write for example 10.")
    return value


def _plan(given: Any) -> str:
    name = str(given).strip().lower()
    if name in PLAN_NAMES:
        return name
    near = get_close_matches(name, PLAN_NAMES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{_shown(given)} is no plan; write one of {', '.join(PLAN_NAMES)}.{hint}")


def _mode(given: Any) -> str:
    text = str(given).strip().lower()
    if text in _NAMED_MODES:
        return text
    if re.fullmatch(r"[0-9]{1,7}", text) and int(text) > 0:
        return str(int(text))
    raise ValueError(
        f"{_shown(given)} is no mode; write top1000, top5000, complete, or a number of coins "
        "such as 250."
    )


def _several(given: Any) -> list[Any]:
    if isinstance(given, (list, tuple)):
        return list(given)
    raise ValueError(
        "this is neither text nor a list; write text, or leave it out for the default."
    )


def _coin_ids(given: Any) -> tuple[str, ...]:
    parts = given.split(",") if isinstance(given, str) else _several(given)
    ids = [str(part).strip() for part in parts]
    ids = list(dict.fromkeys(coin for coin in ids if coin))
    bad = [coin for coin in ids if not coin.isprintable() or len(coin) > 200 or "," in coin]
    if bad:
        raise ValueError(
            f"{_shown(bad[0])} is no coin id; write ids as they stand in the provider's addresses, "
            "separated by commas, for example bitcoin,ethereum,cardano."
        )
    return tuple(ids)


def _currency(given: Any) -> str:
    if str(given).strip().lower() == "usd":
        return "usd"
    raise ValueError(
        f"{_shown(given)} cannot be stored: the columns of every table are in US dollars "
        "(price_usd, market_cap_usd, volume_24h_usd). Write usd, or leave it out."
    )


def _iso_date(given: Any) -> date:
    text = str(given).strip()
    # Later versions of Python read more forms than 3.10 does; all of them take this one.
    written_out = re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) is not None
    try:
        return date.fromisoformat(text if written_out else "")
    except ValueError:
        raise ValueError(f"{_shown(given)} is no date; write it as 2025-01-01.") from None


def parse_duration(given: str) -> timedelta:
    """Read a duration such as "90 minutes", "36 hours", "3 days" or "60 weeks".

    Raises:
        ValueError: it is not a whole positive number and a unit, or more than 100 years.
    """
    units = "|".join(_UNITS)
    match = re.fullmatch(rf"([0-9]{{1,9}})\s*({units})s?", given.strip().lower())
    if match is None:
        raise ValueError(
            f"{_shown(given)} is no duration; write a whole number and minutes, hours, days or "
            "weeks, for example 3 days."
        )
    number, unit = int(match[1]), match[2]
    try:
        duration = timedelta(**{f"{unit}s": number})
    except OverflowError:
        duration = timedelta.max
    if not timedelta(0) < duration <= _LONGEST_KEEP:
        raise ValueError(f"{_shown(given)} is out of reach; write something up to 36500 days.")
    return duration


def _keep(field: str) -> Callable[[Any], Any]:
    shortest = SHIPPED_RETENTION[field]

    def parse(given: Any) -> Any:
        if given is None:
            return None
        keep = given if isinstance(given, timedelta) else parse_duration(str(given))
        if keep < shortest:
            raise ValueError(
                f"{_shown(given)} would shorten the retention of {in_words(shortest)}, which the "
                "closes above it are proved from; write at least that, or leave it out."
            )
        return keep

    return parse


def in_words(duration: timedelta) -> str:
    """`duration` in the largest unit that divides it: "60 weeks", "36 hours", "90 minutes"."""
    minutes = int(duration.total_seconds() // 60)
    for unit, width in (("week", 10_080), ("day", 1_440), ("hour", 60)):
        if minutes >= 2 * width and minutes % width == 0:
            return f"{minutes // width} {unit}s"
    return f"{minutes} minutes"


def _folder(given: Any) -> Path:
    text = "" if given is None else str(given).strip()
    if not text or "\x00" in text:
        raise ValueError("this is no folder; write its whole path, for example /srv/pulseguard.")
    try:
        return Path(text).expanduser().absolute()
    except (RuntimeError, OSError):
        # No such user, or a current directory that was deleted.
        raise ValueError(
            f"{_shown(given)} leads from a folder that is not there; write the whole path, for "
            "example /srv/pulseguard."
        ) from None


def _default_data_dir() -> Path:
    # The embedded server never runs as root, and an unprivileged user cannot enter /root.
    if os.geteuid() == 0:
        return Path("/var/lib/pulseguard")
    return user_data_path("pulseguard")


def _base_url(given: Any) -> Any:
    if given is None:
        return None
    url = str(given).strip().rstrip("/")
    parts = _web_address(url)
    if parts is None:
        raise ValueError(
            "this is no address; write it with http:// or https:// and everything before "
            "/simple/price, for example http://127.0.0.1:8080/api/v3."
        )
    # Its value is never repeated: a password in it would end up in a log.
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "the address may hold no user, password, query or fragment; write only scheme, host, "
            f"port and path. A key belongs into {PREFIX}API_KEY."
        )
    return url


def _api_key(given: SecretStr | None) -> SecretStr | None:
    if given is None:
        return None
    key = given.get_secret_value().strip()
    # Anything else cannot travel in an HTTP header, and the libraries below us would quote
    # the whole header, key included, when they refuse it.
    if not re.fullmatch(r"[\x21-\x7e]{1,256}", key):
        raise ValueError(
            "the key (not shown) holds spaces, line breaks or characters outside ASCII, or is "
            "longer than 256 characters; copy it again from the provider's dashboard."
        )
    return SecretStr(key)


def _database_url(given: SecretStr | None) -> SecretStr | None:
    if given is None:
        return None
    url = given.get_secret_value().strip()
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError(
            "this (not shown) is no PostgreSQL address; write it as "
            "postgresql://user:password@host:5432/database, or leave it out for the embedded "
            "server."
        )
    return SecretStr(url)


def _address(given: Any) -> str:
    text = "" if given is None else str(given).strip()
    if not re.fullmatch(r"[0-9A-Za-z.:_-]{1,255}", text):
        raise ValueError(f"{_shown(text)} is no address to listen on; write for example 127.0.0.1.")
    return text


def _alert_urls(given: Any) -> tuple[SecretStr, ...]:
    text = given.get_secret_value() if isinstance(given, SecretStr) else given
    parts = _split_urls(text) if isinstance(text, str) else _several(text)
    plain = [part.get_secret_value() if isinstance(part, SecretStr) else part for part in parts]
    urls = [str(part).strip() for part in plain]
    for position, url in enumerate(urls, start=1):
        # Only its form: what Apprise can send to, it says where channels are made. Loading it
        # takes longer than most commands, of which few send anything.
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\x00-\x1f]+", url):
            raise ValueError(wrong_alert_url(position))
    return tuple(SecretStr(url) for url in urls)


def wrong_alert_url(position: int) -> str:
    """The sentence about an address of alerts that is none; repeats nothing of it."""
    return (
        f"address {position} (not shown) is none that Apprise can send to; write it as Apprise "
        "documents that service, for example slack://tokenA/tokenB/tokenC or "
        "mailto://user:password@example.com, with special characters in a password "
        "percent-encoded, and several separated by commas."
    )


def _split_urls(text: str) -> list[str]:
    # An address may hold commas itself: mailto://...?to=me@example.com,you@example.com
    parts = re.split(r"[\r\n]+|,(?=\s*(?:[A-Za-z][A-Za-z0-9+.-]*://|$))", text)
    return [part for part in (part.strip().strip(",") for part in parts) if part]


def _definitions(given: Any) -> str:
    text = "" if given is None else str(given).strip()
    if len(text) > 255 or not all(part.isidentifier() for part in text.split(".")):
        raise ValueError(
            f"{_shown(given)} is no name of a Python module; write it as an import does, for "
            f"example my_company.prices, or leave it out for {_OUR_DEFINITIONS}."
        )
    return text


def _reminder(given: Any) -> timedelta:
    return given if isinstance(given, timedelta) else parse_duration(str(given))


def _heartbeat_url(given: SecretStr | None) -> SecretStr | None:
    if given is None:
        return None
    url = given.get_secret_value().strip()
    if _web_address(url) is None:
        raise ValueError(
            "this (not shown) is no address; write the whole address that the service of the "
            "dead-man's switch gave you, with http:// or https://."
        )
    return SecretStr(url)


def _ui_url(given: Any) -> Any:
    if given is None:
        return None
    url = str(given).strip().rstrip("/")
    parts = _web_address(url)
    # It stands in every message: no place for a password.
    if parts is None or parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "this is no address of a web interface; write what you type into the browser, with "
            "http:// or https:// and without user, password or query, for example "
            "https://pulseguard.example.com."
        )
    return url


def _web_address(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        port_is_sane = parts.port is None or parts.port > 0
    except ValueError:
        return None
    plain = url.isascii() and url.isprintable() and " " not in url
    if plain and port_is_sane and parts.scheme in ("http", "https") and parts.hostname:
        return parts
    return None


Secret = Annotated[SecretStr | None, AfterValidator(_api_key)]
SecretUrl = Annotated[SecretStr | None, AfterValidator(_database_url)]
HeartbeatUrl = Annotated[SecretStr | None, AfterValidator(_heartbeat_url)]
AlertUrls = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_alert_urls)]
PositiveInt = Annotated[int | None, BeforeValidator(_whole(1, 10**12))]


class Settings(BaseSettings):
    """The settings in force. Read them with `load_settings`, whose errors are meant to be read.

    Sources, the first that knows a value wins: arguments, environment variables with the
    prefix `PULSEGUARD_`, the file `.env` of the current directory, the defaults below. An empty
    variable counts as not set.

    Attributes:
        database_url: PostgreSQL to use; None means the embedded server in `data_dir`.
        data_dir: absolute folder of the embedded server, of Dagster's files and of logs.
        plan: the provider's plan, one of `PLAN_NAMES`.
        api_key: the provider's key; never shown.
        mode: `top1000`, `top5000`, `complete` or a number of coins; see `coins_wanted`.
        always_include: coin ids collected whatever their rank, in the order given; a single
            comma means none.
        base_url: the provider's address up to `/api/v3`; None means the plan's own host.
        currency: always `usd`.
        history_start: the first day worth repairing from history.
        cadence_minutes: whole minutes between polls; None lets the planner choose.
        reserve_percent: share of the credits that polling leaves alone, 0 to 90.
        calls_per_minute, credits_per_month, history_days: figures that replace the plan's.
        keep_minute, keep_hourly, keep_daily, keep_weekly, keep_collection_status: longer
            retention than the schema ships with; None means as shipped.
        host, port: where the web interface listens.
        alert_urls: where alerts go, as Apprise writes addresses; never shown. Empty: nowhere. Only
            their form is checked here; making channels of them asks Apprise.
        alert_reminder: how often an incident that stays open is told again.
        heartbeat_url: pinged while all is well; never shown.
        ui_url: address of the web interface as people reach it; see `ui_address`.
        ui_read_only: the web interface shows everything and changes nothing.
        definitions: the module of Dagster definitions that is served: ours, or one that takes ours
            from `build_defs` and adds to them.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=DOTENV,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
    )

    database_url: SecretUrl = None
    data_dir: Annotated[Path, BeforeValidator(_folder)] = Field(default_factory=_default_data_dir)
    plan: Annotated[str, BeforeValidator(_plan)] = "keyless"
    api_key: Secret = None
    mode: Annotated[str, BeforeValidator(_mode)] = "top1000"
    always_include: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_coin_ids)] = (
        "bitcoin",
        "ethereum",
        "cardano",
    )
    base_url: Annotated[str | None, BeforeValidator(_base_url)] = None
    currency: Annotated[str, BeforeValidator(_currency)] = "usd"
    history_start: Annotated[date, BeforeValidator(_iso_date)] = date(2025, 1, 1)
    cadence_minutes: Annotated[int | None, BeforeValidator(_whole(1, 1440))] = None
    reserve_percent: Annotated[Decimal, BeforeValidator(_percent)] = Decimal(10)
    calls_per_minute: PositiveInt = None
    credits_per_month: PositiveInt = None
    history_days: Annotated[int | None, BeforeValidator(_whole(1, 36_500))] = None
    keep_minute: Annotated[timedelta | None, BeforeValidator(_keep("keep_minute"))] = None
    keep_hourly: Annotated[timedelta | None, BeforeValidator(_keep("keep_hourly"))] = None
    keep_daily: Annotated[timedelta | None, BeforeValidator(_keep("keep_daily"))] = None
    keep_weekly: Annotated[timedelta | None, BeforeValidator(_keep("keep_weekly"))] = None
    keep_collection_status: Annotated[
        timedelta | None, BeforeValidator(_keep("keep_collection_status"))
    ] = None
    host: Annotated[str, BeforeValidator(_address)] = "127.0.0.1"
    port: Annotated[int, BeforeValidator(_whole(1, 65_535))] = 3000
    alert_urls: AlertUrls = ()
    alert_reminder: Annotated[timedelta, BeforeValidator(_reminder)] = timedelta(hours=6)
    heartbeat_url: HeartbeatUrl = None
    ui_url: Annotated[str | None, BeforeValidator(_ui_url)] = None
    ui_read_only: Annotated[bool, BeforeValidator(_yes_or_no)] = False
    definitions: Annotated[str, BeforeValidator(_definitions)] = _OUR_DEFINITIONS

    @model_validator(mode="after")
    def _key_and_plan_belong_together(self) -> Settings:
        if self.plan == "keyless" and self.api_key is not None:
            raise ValueError(_KEY_WITHOUT_PLAN)
        if self.plan != "keyless" and self.api_key is None:
            raise ValueError(_plan_without_key(self.plan))
        return self

    @property
    def coins_wanted(self) -> int | None:
        """How many coins, by rank, the mode asks for; None means all there are."""
        if self.mode in _NAMED_MODES:
            return _NAMED_MODES[self.mode]
        return int(self.mode)

    @property
    def keep_overrides(self) -> dict[str, timedelta]:
        """The retentions that were set, by table: `{"minute_close": timedelta(days=3)}`."""
        tables = {
            field: field.removeprefix("keep_")
            + ("" if field == "keep_collection_status" else "_close")
            for field in SHIPPED_RETENTION
        }
        given = {table: getattr(self, field) for field, table in tables.items()}
        return {table: keep for table, keep in given.items() if keep is not None}

    @property
    def alert_kinds(self) -> tuple[str, ...]:
        """The kind of each address of `alert_urls`, such as "slack". Fit to be shown."""
        kinds = (url.get_secret_value().partition(":")[0].lower() for url in self.alert_urls)
        return tuple(kind if kind in _NAMED_KINDS else _OTHER_KIND for kind in kinds)

    @property
    def alert_labels(self) -> tuple[str, ...]:
        """Each kind with the place of its address, such as `slack (1)`."""
        return tuple(f"{kind} ({place})" for place, kind in enumerate(self.alert_kinds, start=1))

    @property
    def ui_address(self) -> str:
        """What links to the web interface begin with: `ui_url`, or where it listens."""
        if self.ui_url is not None:
            return self.ui_url
        # Listening everywhere is no address to go to.
        host = "localhost" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def public(self) -> dict[str, str | int | None]:
        """Every setting by its field name, for display: text or numbers, secrets masked."""
        shown: dict[str, str | int | None] = {}
        for field in type(self).model_fields:
            shown[field] = _displayed(field, getattr(self, field))
        shown["alert_urls"] = ",".join(f"{kind}://{_MASK}" for kind in self.alert_kinds)
        return shown


_KEY_WITHOUT_PLAN = (
    "a key is set, but the plan is 'keyless', which would never send it; set it to the plan the "
    "key belongs to (demo for the free key), or take the key away."
)


def _plan_without_key(plan: str) -> str:
    return (
        f"the plan {plan!r} needs a key and none is set; write the key here (in the environment or "
        f"in {DOTENV}), or set {PREFIX}PLAN=keyless."
    )


def _displayed(field: str, value: Any) -> str | int | None:
    if value is None or isinstance(value, int):
        return value
    if field == "database_url":
        return masked_url(value.get_secret_value())
    if isinstance(value, SecretStr):
        return _MASK
    if isinstance(value, timedelta):
        return in_words(value)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def masked_url(url: str) -> str:
    """A PostgreSQL address fit to be shown: no password, and no query, which may hold one."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return _MASK
    if "@" in parts.path or "@" in parts.query or "@" in parts.fragment:
        # An unescaped "/", "?" or "#" in the password split it in the wrong place.
        return _MASK
    user = f"{parts.username}:{_MASK}@" if parts.username else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return f"{parts.scheme}://{user}{host}{port}{parts.path}"


def load_settings(**overrides: Any) -> Settings:
    """Read and validate all settings; `overrides` (by field name) win over every other source.

    Raises:
        SettingsError: something is wrong; one message tells all of it and what to write instead.
        TypeError: an override that is no setting, which is a mistake in the calling code.
    """
    unknown = sorted(set(overrides) - set(Settings.model_fields))
    if unknown:
        raise TypeError(f"no such settings: {', '.join(unknown)}")
    settings, problems = None, []
    try:
        problems = _misspelt_variables()
        settings = Settings(**overrides)
    except ValidationError as error:
        problems = _problems_of(error, overrides) + problems
    except (UnicodeDecodeError, OSError) as error:
        sentence = "the file cannot be read as UTF-8 text; save it as that, or take it away."
        problems = [(DOTENV, f"{sentence} ({type(error).__name__})")]
    if problems or settings is None:
        # Raised outside the handlers: the original errors know values that may be secret.
        raise SettingsError(problems)
    return settings


def _problems_of(error: ValidationError, overrides: Mapping[str, Any]) -> list[tuple[str, str]]:
    problems, bad = [], []
    for detail in error.errors(include_url=False, include_input=False):
        cause = detail.get("ctx", {}).get("error")
        sentence = str(cause) if cause is not None else f"{detail['msg']}."
        if detail["loc"]:
            field = str(detail["loc"][0])
            bad.append(field)
        else:
            field = "plan" if sentence == _KEY_WITHOUT_PLAN else "api_key"
        problems.append((variable_of(field), sentence))
    if bad and not {"plan", "api_key"} & set(bad):
        problems += _cross_problems(bad, overrides)
    return problems


def _cross_problems(bad: Iterable[str], overrides: Mapping[str, Any]) -> list[tuple[str, str]]:
    # The check across fields runs only when every field is good. With the bad ones replaced by
    # their defaults it can be asked too, so that a user sees all there is to mend at once.
    defaults = {
        field: Settings.model_fields[field].get_default(call_default_factory=True) for field in bad
    }
    try:
        Settings(**{**overrides, **defaults})
    except ValidationError as error:
        return _problems_of(error, {})
    return []


def _misspelt_variables() -> list[tuple[str, str]]:
    known = [variable_of(field) for field in Settings.model_fields]
    given = {name.upper() for name in (*os.environ, *_dotenv_names())}
    problems = []
    for name in sorted(given):
        if not name.startswith(PREFIX) or name in known or name in INTERNAL_VARIABLES:
            continue
        if name.startswith(INTERNAL_PREFIXES):
            continue
        near = get_close_matches(name[:_LONGEST_NAME], known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}."
        problems.append((_shown_name(name), f"there is no such setting; {hint}"))
    return problems


def _shown_name(name: str) -> str:
    """A variable's name as far as it is one: what follows may be its value, or steer a terminal."""
    plain = re.match(rf"[A-Z0-9_]{{0,{_LONGEST_NAME}}}", name)
    shown = plain[0] if plain else ""
    return shown if shown == name else f"{shown}..."


def _dotenv_names() -> list[str]:
    return list(DotEnvSettingsSource(Settings).env_vars)

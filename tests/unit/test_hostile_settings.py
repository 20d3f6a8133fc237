"""Hostile settings: whatever stands in a variable, settings or a sentence, and never the secret.

Belongs here: text that nobody would write on purpose, in every variable, by every source. Does
not: what a proper value means (test_settings).
"""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulseguard_assets.coingecko.frames import LONGEST_ID
from pulseguard_assets.settings import (
    DOTENV,
    PREFIX,
    Settings,
    SettingsError,
    load_settings,
    variable_of,
)

FIELDS = list(Settings.model_fields)
SECRET = "hunter2hunter2"
SECRETS = ("database_url", "api_key", "alert_urls", "heartbeat_url")
LONGEST_LINE = 1_200

TEXTS = [
    " ",
    "\t\r\n",
    "0",
    "-1",
    "1e400",
    "9" * 5_000,
    "1_0",
    "１２",
    "٣",
    "NaN",
    "sNaN",
    "-Infinity",
    "1E+999999999",
    "0x10",
    "true",
    "null",
    "[]",
    '{"a": 1}',
    "'; DROP TABLE minute_close; --",
    "$(touch /tmp/x)`id`|;&& rm -rf /",
    "${PULSEGUARD_API_KEY}",
    "%(name)s{0}%s",
    "../../../../etc/passwd",
    "line\nbreak",
    "bell\x07\x1b[31mred\x1b]0;title\x07",
    "\u202egnp.exe\u202c\u200f",
    "\ufeff\ufffe",
    "\udcff\udc80",
    "😀" * 300,
    "x" * 10_000,
    ",",
    "," * 10_000,
    "://",
    "http://",
    "http://[",
    "http://[::1",
    "http://a:99999",
    "http://a:b@c",
    "http://\u2100.example",
    "http://a b",
    "http://..",
    "http://a/" + "x" * 10_000,
    "postgresql://",
    "postgresql://[",
    "postgresql://a:b:c@d:e/f?g#h",
    "postgresql://u:p@h:1/d?x=%zz",
    "mailto://",
    "json://[",
    "slack://a/b",
    "9999999999 weeks",
    "999999999 minutes",
    "0 days",
    "2025-02-30",
    "9999-12-31",
    "0000-01-01",
]


def loaded(**overrides: Any) -> Settings | SettingsError:
    """Load, and look at what came of it; anything else than a `SettingsError` flies."""
    try:
        made = load_settings(**overrides)
    except SettingsError as error:
        assert_sentences(error)
        return error
    assert made.coins_wanted is None or made.coins_wanted > 0
    assert made.ui_address.startswith("http")
    assert all(made.keep_overrides.values())
    shown = made.public()
    assert list(shown) == FIELDS
    assert SECRET not in repr(made)
    assert SECRET not in str(list(shown.values()))
    return made


def assert_sentences(error: SettingsError) -> None:
    first, *lines = str(error).splitlines()
    assert first == "PulseGuard cannot start with these settings:"
    assert len(lines) == len(error.variables) > 0
    for variable, line in zip(error.variables, lines, strict=True):
        assert line.startswith(f"  {variable}: ")
        assert line.isprintable()
        assert line.endswith((".", "?", ")"))
        assert len(line) < LONGEST_LINE
    everything = "".join(traceback.format_exception(error)) + repr(error.__dict__)
    assert SECRET not in everything
    assert "ValidationError" not in everything


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch, only_our_settings: None) -> pytest.MonkeyPatch:
    """No setting of the machine, and an empty current directory."""
    return monkeypatch


def beside(field: str) -> dict[str, str]:
    """What a value of this field needs to be judged for itself: a key wants a plan."""
    return {"plan": "pro"} if field == "api_key" else {}


@pytest.mark.parametrize("field", FIELDS)
def test_whatever_stands_in_a_variable_is_taken_or_told_by_its_name(
    nothing_set: pytest.MonkeyPatch, field: str
) -> None:
    variable = variable_of(field)
    for text in TEXTS:
        nothing_set.setenv(variable, text)
        answer = loaded(**beside(field))
        if isinstance(answer, SettingsError):
            assert variable in str(answer), text


@pytest.mark.parametrize("field", FIELDS)
def test_the_same_in_the_file_and_as_an_argument(
    nothing_set: pytest.MonkeyPatch, field: str
) -> None:
    variable = variable_of(field)
    for text in TEXTS[::3]:  # what is read is then judged as in the environment
        Path(DOTENV).write_text(f"{variable}={text}\n", "utf-8", errors="surrogatepass")
        loaded()
        Path(DOTENV).unlink()
        answer = loaded(**beside(field), **{field: text})
        assert isinstance(answer, Settings) or variable in str(answer), text


PROPER_SCHEME = {"database_url": "postgresql", "heartbeat_url": "https", "alert_urls": "mailto"}


def secrets_in(field: str, text: str) -> list[str]:
    """Values of a secret variable with the secret where a secret belongs, and something hostile."""
    if field == "api_key":
        return [SECRET + text, text + SECRET]
    return [
        f"{scheme}://u:{before}{SECRET}{after}@example.org/x"
        for scheme in (PROPER_SCHEME[field], "nonsense")
        for before, after in ((text, ""), ("", text))
    ]


@pytest.mark.parametrize("field", SECRETS)
def test_a_secret_is_never_repeated_whether_its_value_is_taken_or_not(
    nothing_set: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    for text in TEXTS[::2]:
        for value in secrets_in(field, text):
            nothing_set.setenv(variable_of(field), value)
            loaded(**beside(field))
            assert isinstance(loaded(mode="nonsense"), SettingsError)
    assert SECRET not in caplog.text


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    given_values=st.dictionaries(
        st.sampled_from(FIELDS),
        st.text(st.characters(exclude_characters="\x00"), max_size=30)
        | st.sampled_from(TEXTS)
        | st.integers().map(str)
        | st.floats().map(str),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_in_any_of_them_at_once(
    nothing_set: pytest.MonkeyPatch, given_values: dict[str, str]
) -> None:
    with pytest.MonkeyPatch.context() as environment:
        for field, text in given_values.items():
            environment.setenv(variable_of(field), os.fsdecode(text.encode("utf-8", "replace")))
        loaded()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))
)
def test_any_file_of_settings_at_all(nothing_set: pytest.MonkeyPatch, content: bytes) -> None:
    for begin in (b"", f"{PREFIX}MODE=".encode(), f"{PREFIX}API_KEY='{SECRET}\n".encode()):
        Path(DOTENV).write_bytes(begin + content)
        loaded()


def test_a_misspelt_variable_is_told_and_its_value_is_not(
    nothing_set: pytest.MonkeyPatch,
) -> None:
    for text in TEXTS:
        name = PREFIX + "X" + text.replace("=", "").replace("\x00", "")[:200]
        nothing_set.setenv(name, SECRET)
        answer = loaded()
        assert isinstance(answer, SettingsError)
        (shown,) = answer.variables
        assert shown == name.upper() or name.upper().startswith(shown.removesuffix("..."))
        assert re.fullmatch(r"PULSEGUARD_X[A-Z0-9_]*(\.\.\.)?", shown)
        nothing_set.delenv(name)


@pytest.mark.parametrize(
    "line",
    [f"{PREFIX}API_KEY:{SECRET}", f"{PREFIX}API_KEY:{SECRET}=x", f"{PREFIX}API_KEY-{SECRET}"],
)
def test_a_value_that_was_taken_for_a_part_of_the_name_is_not_repeated(
    nothing_set: pytest.MonkeyPatch, line: str
) -> None:
    Path(DOTENV).write_text(f"{line}\n", "utf-8")
    answer = loaded()
    assert isinstance(answer, SettingsError)
    assert SECRET.upper() not in str(answer)
    assert f"{PREFIX}API_KEY...: there is no such setting; did you mean" in str(answer)


@pytest.mark.parametrize("value", [None, 5, 1.5, b"x", object(), {}, [None], [b"x"], [[]], ()])
@pytest.mark.parametrize("field", FIELDS)
def test_an_argument_of_any_kind_is_taken_or_told(
    nothing_set: pytest.MonkeyPatch, field: str, value: Any
) -> None:
    answer = loaded(**beside(field), **{field: value})
    assert isinstance(answer, Settings) or variable_of(field) in str(answer)


@pytest.mark.parametrize("field", ["always_include", "alert_urls", "data_dir", "host"])
def test_nothing_is_no_value_of_a_setting_that_needs_one(
    nothing_set: pytest.MonkeyPatch, field: str
) -> None:
    answer = loaded(**{field: None})
    assert isinstance(answer, SettingsError)
    assert answer.variables == (variable_of(field),)


@pytest.mark.parametrize("folder", ["~nosuchuser/x", "~nosuchuser", "a\x00b"])
def test_a_folder_that_leads_nowhere_is_told_by_its_variable(
    nothing_set: pytest.MonkeyPatch, folder: str
) -> None:
    answer = loaded(data_dir=folder)
    assert isinstance(answer, SettingsError)
    assert answer.variables == ("PULSEGUARD_DATA_DIR",)
    assert "write the whole path" in str(answer) or "write its whole path" in str(answer)


def test_a_current_directory_that_was_deleted_is_told_too(
    nothing_set: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    nothing_set.chdir(gone)
    gone.rmdir()
    answer = loaded(data_dir="x")
    assert isinstance(answer, SettingsError)
    assert answer.variables == ("PULSEGUARD_DATA_DIR",)
    assert isinstance(loaded(data_dir="/x"), Settings)


def test_an_id_may_be_as_long_as_one_that_the_provider_sends(
    nothing_set: pytest.MonkeyPatch,
) -> None:
    longest = "x" * LONGEST_ID
    assert load_settings(always_include=longest).always_include == (longest,)
    assert isinstance(loaded(always_include=longest + "x"), SettingsError)

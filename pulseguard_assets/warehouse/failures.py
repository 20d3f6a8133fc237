"""What PostgreSQL's failures mean to a person.

Belongs here: which failures somebody can do something about, and what. Does not: noticing them.

A server that refuses a connection gives no code to go by, only words; so both are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import errors


@dataclass(frozen=True)
class _Trouble:
    """One kind of failure.

    Attributes:
        kinds: its classes, once connected.
        words: what the server says, also to one that it does not let in.
        advice: what to do.
    """

    kinds: tuple[type[psycopg.Error], ...]
    words: tuple[str, ...]
    advice: str


_ELSE = "If it lasts, check that the server of PULSEGUARD_DATABASE_URL runs."

_TROUBLES = (
    _Trouble(
        (errors.InsufficientPrivilege,),
        ("permission denied for",),
        "Collecting takes a login that is a member of pulseguard_writer, reading one of "
        "pulseguard_reader; `pulseguard roles` makes both.",
    ),
    _Trouble(
        (errors.DiskFull,),
        ("No space left on device",),
        "The disk of the server is full: make room on it. Everything goes on by itself then.",
    ),
    _Trouble(
        (errors.ReadOnlySqlTransaction,),
        ("in a read-only transaction", "session is read-only"),
        "The server takes no writes: it is a standby, or default_transaction_read_only is on. Name "
        "the primary in PULSEGUARD_DATABASE_URL, or have the setting switched off.",
    ),
    _Trouble(
        (errors.TooManyConnections,),
        ("too many clients already", "too many connections", "connection slots are reserved"),
        "All connections of the server are taken: end some (pg_stat_activity lists them), or raise "
        "its max_connections. PulseGuard needs about 30.",
    ),
    _Trouble(
        (errors.CannotConnectNow, errors.AdminShutdown, errors.CrashShutdown),
        (
            "is starting up",
            "is shutting down",
            "in recovery mode",
            "not yet accepting connections",
            "terminating connection",
            "server closed the connection unexpectedly",
        ),
        "The server is being stopped or started; it is tried again. " + _ELSE,
    ),
)


def advice_for(error: psycopg.Error, otherwise: str = _ELSE) -> str:
    """What to do about an error of PostgreSQL, in a sentence or two."""
    said = str(error)
    for trouble in _TROUBLES:
        if isinstance(error, trouble.kinds) or any(words in said for words in trouble.words):
            return trouble.advice
    return otherwise


def what_failed(error: psycopg.Error) -> str:
    """What went wrong in PostgreSQL, and what to do."""
    said = " ".join(str(error).split()) or type(error).__name__
    return f"PostgreSQL failed: {said.rstrip('.')}. {advice_for(error)}"

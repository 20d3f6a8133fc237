"""What `pulseguard up` does when the clock is set back, and when its database is in trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pulseguard_assets.running import platform as module
from pulseguard_assets.running.children import DAEMON
from pulseguard_assets.running.platform import Options, _Platform
from pulseguard_assets.running.screen import Screen
from pulseguard_assets.settings import load_settings
from pulseguard_assets.warehouse.connection import DatabaseUnavailable
from pulseguard_assets.warehouse.embedded import EmbeddedPostgresError


class Supervisor:
    """Notes who is to be replaced."""

    def __init__(self) -> None:
        self.replaced: list[str] = []

    def replace(self, name: str) -> None:
        self.replaced.append(name)


@pytest.fixture
def said() -> list[str]:
    """The lines on the screen."""
    return []


@pytest.fixture
def platform(
    said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_our_settings: None
) -> _Platform:
    """A platform that looks after things all the time."""
    monkeypatch.setattr(module, "_LOOK_AT_CLOCK_EVERY", 0.01)
    monkeypatch.setattr(module, "_LOOK_AT_DATABASE_EVERY", 0.01)
    platform = _Platform(load_settings(data_dir=tmp_path), Screen(said.append), Options())
    platform._supervisor = Supervisor()  # type: ignore[assignment]
    return platform


def run(work: Callable[[asyncio.Event], Any]) -> None:
    """Run a watch until the event is set."""

    async def until_done() -> None:
        done = asyncio.Event()
        watch = asyncio.ensure_future(work(done))
        await asyncio.wait(
            {watch, asyncio.ensure_future(done.wait())},
            timeout=30,
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert done.is_set() or watch.result()
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    asyncio.run(until_done())


def looks(*found: Any) -> Callable[[], Any]:
    """A stand-in that returns, or raises, one after the other, and then the last for ever."""
    left: Iterator[Any] = iter(found)
    last = found[-1]

    def look() -> Any:
        each = next(left, last)
        if isinstance(each, BaseException):
            raise each
        return each

    return look


def test_a_clock_set_back_has_the_daemon_replaced_once_and_dagster_freed_however_often_it_takes(
    platform: _Platform, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        set_back = staticmethod(looks(None, None, timedelta(days=1), None))

    freed: list[int] = []
    monkeypatch.setattr(module, "ClockWatch", Clock)

    def work(done: asyncio.Event) -> Any:
        loop = asyncio.get_running_loop()

        def free() -> None:
            freed.append(1)
            if len(freed) == 1:
                raise DatabaseUnavailable("not now")
            if len(freed) == 3:
                loop.call_soon_threadsafe(done.set)

        monkeypatch.setattr(platform, "_free_dagster", free)
        return platform._watch_clock()

    run(work)

    assert platform._supervisor.replaced == [DAEMON]  # type: ignore[union-attr]
    (line,) = said
    assert "The clock was set back by 86400 s; the daemon is restarted" in line


def test_a_database_in_any_trouble_is_tried_on_and_each_trouble_said_once(
    platform: _Platform, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = looks(
        OSError(28, "No space left on device"),
        EmbeddedPostgresError("PostgreSQL ended.\nIt said:\n12:00:01 full"),
        EmbeddedPostgresError("PostgreSQL ended.\nIt said:\n12:00:06 full"),
        psycopg.OperationalError("server closed the connection unexpectedly"),
        DatabaseUnavailable("Cannot connect."),
        True,
        False,
    )

    def work(done: asyncio.Event) -> Any:
        loop = asyncio.get_running_loop()

        def restore() -> bool:
            lost: bool = look()
            if not lost:
                loop.call_soon_threadsafe(done.set)
            return lost

        monkeypatch.setattr(platform, "_restore_database", restore)
        return platform._watch_database()

    run(work)

    assert len(said) == 5
    for line, words in zip(
        said,
        ("No space", "ended.", "PostgreSQL failed: server closed", "Cannot connect.", "is back"),
        strict=True,
    ):
        assert words in line

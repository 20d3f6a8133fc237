"""What the end-to-end tests share: starting a platform, and a browser to look at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from up_support import PATIENCE, STAND_IN, Up, eventually


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Up]]:
    """`start("up")` or `start("demo")`; its settings are keywords, named as their variables."""
    started: list[Up] = []

    def start(*arguments: str, definitions: str = STAND_IN, **environment: str) -> Up:
        data_dir = folder / "data"
        started.append(Up(data_dir, *arguments, PULSEGUARD_DEFINITIONS=definitions, **environment))
        if "demo" in arguments:
            started[-1].data_dir = data_dir / "demo"
        return started[-1]

    yield start
    # All of them first: they may have shared one data folder, one after the other.
    for one in started:
        if one.code is None:
            one.process.kill()
            one.process.wait()
    eventually("all is gone", lambda: not any(one.processes() for one in started), within=30)


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless.

    For one test and not for the session: Playwright keeps an event loop running in this thread,
    and whatever calls `asyncio.run` meanwhile, as Dagster does, fails.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here; `apt-get install chromium` brings it")
    # A loaded machine takes more than the usual five seconds to draw a page.
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
            ],
        )
        yield browser
        browser.close()

"""The settings of `pulseguard demo`: simulated prices, apart from everything real.

Belongs here: what the demo overrides. Does not: the simulator itself (`simulator/`).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from pulseguard_assets.settings import Settings, load_settings

# The figures of the largest published plan, so that the demo shows the platform, not a budget.
_FIGURES: dict[str, Any] = {
    "plan": "keyless",
    "api_key": None,
    "database_url": None,
    "calls_per_minute": 1_000,
    "credits_per_month": 5_000_000,
    "history_days": 3_650,
    "cadence_minutes": 1,
}


def demo_settings(simulator_port: int, **overrides: Any) -> Settings:
    """The user's settings, with the provider, the plan and the database replaced.

    The data lies in the folder `demo` of the user's data folder, in an embedded server of its
    own even where the user named a database: simulated prices are never mixed with real ones.

    Raises:
        SettingsError: a setting that the demo does not replace is wrong.
    """
    base_url = f"http://127.0.0.1:{simulator_port}/api/v3"
    usual = load_settings(**{**_FIGURES, "base_url": base_url, **overrides})
    own = {"base_url": base_url, "data_dir": folder_of(usual, demo=True)}
    return load_settings(**{**_FIGURES, **overrides, **own})


def folder_of(settings: Settings, *, demo: bool) -> Path:
    """The data folder of these settings, or the one that the demo has in it."""
    return settings.data_dir / "demo" if demo else settings.data_dir


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

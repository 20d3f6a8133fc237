"""What `pulseguard up` shows: progress, the welcome, and what happens later.

Belongs here: words and their layout. Does not: deciding anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from pulseguard_assets.collecting.planning import polling_by_settings
from pulseguard_assets.running.instance import Folders
from pulseguard_assets.running.polling import in_words
from pulseguard_assets.settings import Settings, masked_url

Line = Callable[[str], None]

# The provider's terms ask for these words, with the link, wherever its data is shown.
_ATTRIBUTION = "Data provided by CoinGecko (https://www.coingecko.com)"
_SIMULATED = "simulated prices, none of them real"


class Screen:
    """Writes lines for a person who watches.

    Args:
        line: takes one line of text.
        verbose: also show every line the children print.
        now: the time of day, UTC.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        line: Line,
        *,
        verbose: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line = line
        self._now = now
        self._clock = clock
        self.echo: Line | None = line if verbose else None

    def say(self, sentence: str) -> None:
        """Something that happened, with its time (UTC)."""
        self._line(f"{self._now():%H:%M:%S}  {sentence}")

    def progress(self, sentence: str) -> None:
        """A remark within a step."""
        self._line(f"    {'':<12}  {sentence} ...")

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """One step of the start; call what this yields with its outcome."""
        begun = self._clock()

        def done(outcome: str) -> None:
            self._line(f"  ✓ {name:<12}  {outcome} ({self._clock() - begun:.1f} s)")

        try:
            yield done
        except BaseException:
            self._line(f"  ✗ {name}")
            raise

    def settings(self, settings: Settings, folders: Folders, *, simulated: bool) -> None:
        """The first line of progress: what was asked for."""
        provider = "simulated provider" if simulated else f"plan {settings.plan}"
        self._line(
            f"  ✓ {'settings':<12}  {provider}, coins {settings.mode}, data in {folders.root}"
        )

    def welcome(self, settings: Settings, folders: Folders, *, simulated: bool) -> None:
        """Everything is up: where to look, and how to stop."""
        rows = {
            "Web interface": web_address(settings.host, settings.port)
            + (" (read-only)" if settings.ui_read_only else ""),
            "Polling": in_words(polling_by_settings(settings)),
            "Prices": _where_prices_are(settings, folders, simulated=simulated),
            "Logs": str(folders.logs),
            "Alerts": where_alerts_go(settings),
            "Source": _SIMULATED if simulated else _ATTRIBUTION,
            "To stop": "Ctrl-C (twice: at once)",
        }
        self._line("")
        self._line("PulseGuard is running." if not simulated else "The PulseGuard demo is running.")
        self._line("")
        for title, text in rows.items():
            self._line(f"  {title:<14} {text}")
        self._line("")


def web_address(host: str, port: int) -> str:
    """The address for a browser on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - not bound
    if ":" in shown and not shown.startswith("["):
        shown = f"[{shown}]"
    return f"http://{shown}:{port}"


def where_alerts_go(settings: Settings) -> str:
    """The channels of alerts by kind and place, such as "slack (1), mailto (2)".

    Without loading them, which takes longer than everything else that is shown.
    """
    if not settings.alert_urls:
        return (
            "nowhere: no channel is configured, so nobody is told when something fails. Set "
            "PULSEGUARD_ALERT_URLS; `pulseguard alert-test` tries it"
        )
    return ", ".join(settings.alert_labels)


def _where_prices_are(settings: Settings, folders: Folders, *, simulated: bool) -> str:
    if settings.database_url is None:
        command = "pulseguard psql --demo" if simulated else "pulseguard psql"
        return f"{folders.root / 'postgres'} (embedded PostgreSQL; `{command}` opens it)"
    return f"{masked_url(settings.database_url.get_secret_value())} (`pulseguard psql` opens it)"

"""`pulseguard simulate`: the local CoinGecko from a shell.

Belongs here: options and the line that says it is ready. Does not: serving.
"""

from __future__ import annotations

from datetime import datetime, timezone

import click

from pulseguard_assets.simulator.app import Simulation
from pulseguard_assets.simulator.clock import ClockError, MovableClock
from pulseguard_assets.simulator.limits import Limits
from pulseguard_assets.simulator.market import Market
from pulseguard_assets.simulator.server import serve


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen on; 0 picks a free one.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which market to invent.")
@click.option(
    "--coins", type=click.IntRange(min=1), default=20_000, show_default=True, help="How many coins."
)
@click.option(
    "--churn/--no-churn", default=True, show_default=True, help="Coins come and go over the years."
)
@click.option(
    "--now", "start", default=None, help="Simulated time to start at, such as 2026-03-01T00:00:00Z."
)
@click.option(
    "--rate", type=float, default=1.0, show_default=True, help="Simulated seconds per second."
)
@click.option("--plan-calls-per-minute", type=click.IntRange(min=0), help="Refuse calls beyond.")
@click.option("--monthly-credits", type=click.IntRange(min=0), help="Refuse calls beyond.")
@click.option("--history-days", type=click.IntRange(min=0), help="How far back charts reach.")
@click.option("--pro", is_flag=True, help="Be the paid plans' host: pro key header, /key.")
@click.option("--require-key", is_flag=True, help="Refuse calls without a key.")
@click.option("--key", "keys", multiple=True, help="Accept only this key; may be repeated.")
@click.option(
    "--retry-after/--no-retry-after",
    default=True,
    show_default=True,
    help="Whether a refusal for the rate says when to come back.",
)
@click.option(
    "--max-url-bytes", type=click.IntRange(min=64), default=8_192, show_default=True,
    help="Longer URLs are answered with 414.",
)  # fmt: skip
def simulate(
    host: str,
    port: int,
    seed: int,
    coins: int,
    churn: bool,
    start: str | None,
    rate: float,
    plan_calls_per_minute: int | None,
    monthly_credits: int | None,
    history_days: int | None,
    pro: bool,
    require_key: bool,
    keys: tuple[str, ...],
    retry_after: bool,
    max_url_bytes: int,
) -> None:
    """Serve a local CoinGecko with an invented market. GET /admin shows its levers."""
    limits = Limits(
        calls_per_minute=plan_calls_per_minute,
        monthly_credits=monthly_credits,
        history_days=history_days,
        host="pro" if pro else "public",
        require_key=require_key,
        keys=keys,
        retry_after=retry_after,
        max_url_bytes=max_url_bytes,
    )
    try:
        clock = MovableClock(now=_instant(start), rate=rate)
    except ClockError as wrong:
        raise click.UsageError(str(wrong)) from None
    simulation = Simulation(Market(seed, coins, churn=churn), clock=clock, limits=limits)
    try:
        serve(host, port, simulation=simulation, on_ready=_say_ready)
    except OSError as wrong:
        raise click.ClickException(
            f"cannot listen on {host}:{port} ({wrong.strerror}); choose another --port."
        ) from None


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no time; write 2026-03-01T00:00:00Z.", param_hint="--now"
        ) from None
    return instant if instant.tzinfo else instant.replace(tzinfo=timezone.utc)


def _say_ready(url: str) -> None:
    click.echo(f"simulated CoinGecko on {url} (levers: {url.removesuffix('/api/v3')}/admin)")

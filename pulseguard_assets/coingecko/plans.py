"""The provider's plans: what each allows, where it is served and how its key travels.

Belongs here: the table, and the figures a user put in its place. Does not: what follows from
them for polling (`planner.py`) or who keeps count of calls (a ledger outside this package).

Figures as published by the provider in 2026. Sources differ on the demo plan (30 or 100 calls a
minute); the smaller is taken, and every figure can be replaced by a setting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PUBLIC_HOST = "https://api.coingecko.com/api/v3"
PRO_HOST = "https://pro-api.coingecko.com/api/v3"
DEMO_HEADER = "x-cg-demo-api-key"
PRO_HEADER = "x-cg-pro-api-key"


@dataclass(frozen=True)
class Plan:
    """One plan of the provider.

    Attributes:
        name: as in `PULSEGUARD_PLAN`.
        calls_per_minute: most calls in any one minute.
        sustainable_calls_per_minute: most calls a minute for hours on end; less than
            `calls_per_minute` only where the limit is shared with strangers.
        credits_per_month: most calls in a calendar month; None means no such limit.
        history_days: how far history reaches back; None means all of it.
        host: address up to and including `/api/v3`.
        header: the header that carries the key; None means no key is sent.
    """

    name: str
    calls_per_minute: int
    sustainable_calls_per_minute: int
    credits_per_month: int | None
    history_days: int | None
    host: str
    header: str | None

    @property
    def is_paid(self) -> bool:
        """Whether the plan is served by the paid host, which alone has `/key`."""
        return self.host == PRO_HOST


def _paid(name: str, calls: int, credits: int, history_days: int | None = None) -> Plan:
    return Plan(name, calls, calls, credits, history_days, PRO_HOST, PRO_HEADER)


PLANS: dict[str, Plan] = {
    plan.name: plan
    for plan in (
        # The limit counts an address, which others may share: bursts of five are seen, but one
        # call a minute is what can be had all day.
        Plan("keyless", 5, 1, None, 365, PUBLIC_HOST, None),
        Plan("demo", 30, 30, 10_000, 365, PUBLIC_HOST, DEMO_HEADER),
        _paid("basic", 250, 100_000, 730),
        _paid("analyst", 500, 500_000),
        _paid("lite", 500, 2_000_000),
        _paid("pro", 1_000, 5_000_000),
        # Agreed with each customer; until its figures are set it is treated as the largest
        # published plan.
        _paid("enterprise", 1_000, 5_000_000),
    )
}


def plan_for(
    name: str,
    *,
    calls_per_minute: int | None = None,
    credits_per_month: int | None = None,
    history_days: int | None = None,
) -> Plan:
    """The plan `name` with the given figures in place of the published ones.

    Calls a minute that a user states are taken to be sustainable too.

    Raises:
        ValueError: no such plan, or a figure below 1.
    """
    if name not in PLANS:
        raise ValueError(f"{name!r} is no plan; set PULSEGUARD_PLAN to one of {', '.join(PLANS)}.")
    figures = {
        "calls_per_minute": calls_per_minute,
        "sustainable_calls_per_minute": calls_per_minute,
        "credits_per_month": credits_per_month,
        "history_days": history_days,
    }
    given = {figure: value for figure, value in figures.items() if value is not None}
    for figure, value in given.items():
        if value < 1:
            raise ValueError(f"PULSEGUARD_{figure.upper()} is {value}; set it to 1 or more.")
    return replace(PLANS[name], **given)  # type: ignore[arg-type]

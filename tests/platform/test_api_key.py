"""The key reaches neither Dagster's event log nor what it keeps of a failed tick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest
from dagster._serdes import serialize_value
from dagster._utils.error import serializable_error_info_from_exc_info

from pulseguard_assets.collecting.polling import PollFailed
from pulseguard_assets.simulator.server import RunningSimulator

API_KEY = "CG-Sesam0effneDichNicht"
HOUR = "2025-11-22-12:00"


def kept_of_a_failed_tick(sensor: Any) -> str:
    """What the daemon stores: message, stack, causes and context."""
    try:
        sensor.tick()
    except PollFailed:
        return serialize_value(serializable_error_info_from_exc_info(sys.exc_info()))
    pytest.fail("the tick did not fail")


def test_neither_events_nor_tick_errors_hold_the_key(
    sensor: Any,
    materialize: Callable[..., dg.ExecuteInProcessResult],
    instance: dg.DagsterInstance,
    provider: RunningSimulator,
) -> None:
    echo = {"status": 401, "body": f'{{"error": "no such key: {API_KEY}"}}'}
    kept = []
    for broken in (True, False):
        if broken:
            provider.fault("raw", **echo)
        assert materialize("coin_priorities").success is not broken
        provider.clear_faults()
    sensor.tick()
    for kind, rule in (("raw", echo), ("api_error", {"code": 10002}), ("reset", {})):
        sensor.wait(minutes=10)
        provider.fault(kind, **rule)
        kept.append(kept_of_a_failed_tick(sensor))
        assert not materialize("minute_close", HOUR).success
        provider.clear_faults()
    assert materialize("minute_close", HOUR).success

    runs = instance.get_runs()
    assert len(runs) == 6
    kept += [serialize_value(run) for run in runs]
    kept += [serialize_value(e) for run in runs for e in instance.all_logs(run.run_id)]
    kept += [serialize_value(record.event_log_entry) for record in sensor.materializations()]
    everything = "\n".join(kept)
    assert "no such key: ***" in everything, "or the failures are not looked at"
    assert "ProviderUnavailable" in everything, "or the causes are not"
    assert API_KEY not in everything
    assert API_KEY.removeprefix("CG-") not in everything

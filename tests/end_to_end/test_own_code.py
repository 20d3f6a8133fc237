"""A user's code beside ours that does not load any more: told, and over by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from alerting_support import MINUTES, NAMED_WITHIN, alerting, messages, open_incidents
from alerts_support import serving_mailbox, serving_webhook
from up_support import Up, eventually, utc_now

from pulseguard_assets.simulator.limits import Limits
from pulseguard_assets.simulator.server import running_simulator

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

UNLOADABLE = "location:pulseguard:UNLOADABLE"
# A module of a user's, with ours in it.
OWN_CODE = """from pulseguard_assets.definitions import build_defs

defs = build_defs()
"""


def test_code_that_does_not_load_any_more_is_told_in_its_own_words_until_it_does(
    start: Callable[..., Up], folder: Path
) -> None:
    code = folder / "own_code.py"
    code.write_text(OWN_CODE, "utf-8")
    with (
        running_simulator(coins=50, limits=Limits(host="pro")) as provider,
        serving_webhook() as hook,
        serving_mailbox() as mail,
    ):
        up = alerting(start, provider, hook, mail, definitions=code.stem, PYTHONPATH=str(folder))
        eventually("a first minute", lambda: up.query(MINUTES) >= 1)
        code.write_text(f"import pandaz\n{OWN_CODE}", "utf-8")
        up.reload()
        broken = utc_now()
        eventually("it is an incident", lambda: UNLOADABLE in open_incidents(up), within=150)
        assert open_incidents(up)[UNLOADABLE][0] - broken <= NAMED_WITHIN
        eventually("told", lambda: messages(hook, "the code does not load"), within=60)
        (told,) = hook.received
        assert "No module named 'pandaz' (own_code.py, line 1)" in told.text
        assert open_incidents(up).keys() == {UNLOADABLE}, "what follows from it is not told"

        code.write_text(OWN_CODE, "utf-8")
        minutes = up.query(MINUTES)
        eventually("it collects again", lambda: up.query(MINUTES) > minutes, within=180)
        eventually("told", lambda: messages(hook, "the code", "recovered"), within=300)
        assert len(hook.received) == 2, hook.titles()

"""The web interface's address, before anything is started."""

from __future__ import annotations

import os
import socket

import pytest

from pulseguard_assets.running.address import AddressUnusable, require_free
from pulseguard_assets.running.children import reachable
from pulseguard_assets.running.screen import web_address


def test_a_free_port_is_free_and_stays_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)


def test_a_taken_port_names_who_has_it_and_what_to_set() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AddressUnusable, match="PULSEGUARD_PORT") as refusal:
            require_free("127.0.0.1", port)
    assert f"process {os.getpid()} (" in str(refusal.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(AddressUnusable, match="PULSEGUARD_HOST"):
        require_free(host, 3000)


@pytest.mark.parametrize(
    ("listens_on", "probed", "shown"),
    [
        ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:3000"),
        ("0.0.0.0", "127.0.0.1", "http://127.0.0.1:3000"),
        ("::", "::1", "http://[::1]:3000"),
        ("::1", "::1", "http://[::1]:3000"),
        ("prices.lan", "prices.lan", "http://prices.lan:3000"),
    ],
)
def test_all_addresses_are_reached_through_one(listens_on: str, probed: str, shown: str) -> None:
    assert reachable(listens_on) == probed
    assert web_address(listens_on, 3000) == shown

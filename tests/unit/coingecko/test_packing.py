"""Ids into calls: within both limits, none lost, none twice."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulseguard_assets.coingecko.packing import (
    URL_OVERHEAD,
    encode_id,
    halve,
    join_ids,
    pack_ids,
)

ids = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=72))


def test_a_thousand_ordinary_coins_fit_in_two_calls() -> None:
    # The ids of a recorded page of 250 coins have 10.8 characters on average.
    ordinary = [f"coin-id-{number:04d}" for number in range(1000)]

    assert [len(call) for call in pack_ids(ordinary)] == [500, 500]


@given(ids, st.integers(1, 20), st.integers(URL_OVERHEAD + 10, 2000))
def test_packing_keeps_every_id_once_in_order_and_within_the_limits(
    coin_ids: list[str], max_ids: int, max_url_bytes: int
) -> None:
    calls = pack_ids(coin_ids, max_ids=max_ids, max_url_bytes=max_url_bytes)

    assert [coin for call in calls for coin in call] == list(dict.fromkeys(coin_ids))
    assert all(1 <= len(call) <= max_ids for call in calls)
    assert all(
        len(join_ids(call)) <= max_url_bytes - URL_OVERHEAD for call in calls if len(call) > 1
    )


def test_no_ids_make_no_calls() -> None:
    assert pack_ids([]) == []


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_an_encoded_id_is_plain_ascii_without_separators_and_decodes_to_itself(
    coin_id: str,
) -> None:
    encoded = encode_id(coin_id)

    assert encoded.isascii()
    assert not set(encoded) & set(" ,/?#&+[]")
    assert set(encoded) != {"."}
    assert unquote(encoded) == coin_id


def test_odd_ids_are_escaped_and_the_commas_between_them_are_not() -> None:
    odd = ["1move token", "boringdao-[old]", "_", "-10", "4", "a,b", "x.y"]

    assert join_ids(odd) == "1move%20token,boringdao-%5Bold%5D,_,-10,4,a%2Cb,x.y"


def test_an_id_of_dots_cannot_lead_to_another_folder() -> None:
    assert encode_id("..") == "%2E%2E"


def test_a_call_that_was_too_long_is_halved_without_losing_a_coin() -> None:
    assert halve(["a", "b", "c"]) == (["a"], ["b", "c"])


def test_a_single_coin_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="fewer than two"):
        halve(["a"])

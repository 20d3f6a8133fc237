"""Ids into calls: as many coins in an address as the provider takes.

Belongs here: encoding and counting. Does not: making the calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar
from urllib.parse import quote

MAX_IDS = 500
MAX_URL_BYTES = 7000
# Host, path and the other parameters of the longest address, with room for a longer base URL.
URL_OVERHEAD = 200

T = TypeVar("T")


def encode_id(coin_id: str) -> str:
    """`coin_id` fit for a path or a query: everything but letters, digits and `_-~` escaped.

    The dot is escaped only where it could be taken for a folder (an id of dots alone).
    """
    encoded = quote(coin_id, safe="")
    return encoded.replace(".", "%2E") if not encoded.strip(".") else encoded


def join_ids(coin_ids: Iterable[str]) -> str:
    """The ids for a query, joined by plain commas.

    A comma needs no escape in a query; as `%2C` it would take three bytes, and a call would
    hold a seventh fewer coins.
    """
    return ",".join(encode_id(coin_id) for coin_id in coin_ids)


def pack_ids(
    ids: Iterable[str], *, max_ids: int = MAX_IDS, max_url_bytes: int = MAX_URL_BYTES
) -> list[list[str]]:
    """Split `ids` into calls, in order, each within both limits; an id twice is asked for once.

    Args:
        max_ids: most ids in a call.
        max_url_bytes: most bytes of the whole address, of which `URL_OVERHEAD` are set aside
            for all that is not ids. An id longer than the rest gets a call of its own.
    """
    room = max_url_bytes - URL_OVERHEAD
    calls: list[list[str]] = []
    used = 0
    for coin_id in dict.fromkeys(ids):
        size = len(encode_id(coin_id)) + 1
        if not calls or len(calls[-1]) >= max_ids or used + size > room:
            calls.append([])
            used = 0
        calls[-1].append(coin_id)
        used += size
    return calls


def halve(ids: Sequence[T]) -> tuple[list[T], list[T]]:
    """Two calls in place of one whose address was too long (`UriTooLong`).

    Raises:
        ValueError: a single id cannot be halved.
    """
    if len(ids) < 2:
        raise ValueError("a call for fewer than two coins cannot be made shorter")
    middle = len(ids) // 2
    return list(ids[:middle]), list(ids[middle:])

"""From where a request comes: the only one to believe, or not, what a proxy says of its client."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from flask import Request

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

FORWARDED_FOR: Final = "X-Forwarded-For"


def source_of(request: Request, trusted: Sequence[Network]) -> Address | None:
    """Return the address that asks: the peer, or whom proxies that we trust speak for.

    Read from the right, past our own proxies: what stands further left anybody may have written.
    None when it is not known; then nobody may rely on it.
    """
    peer = _address(request.remote_addr or "")
    if peer is None or not _within(peer, trusted):
        return peer
    named = ",".join(request.headers.getlist(FORWARDED_FOR))
    found: Address | None = peer
    for text in reversed(named.split(",") if named.strip() else []):
        found = _address(text.strip())
        if found is None or not _within(found, trusted):
            break
    return found


def peer_is_loopback(request: Request) -> bool:
    """Tell whether the peer itself is this machine."""
    peer = _address(request.remote_addr or "")
    return peer is not None and peer.is_loopback


def allowed(address: Address | None, ranges: Sequence[str] | None) -> bool:
    """Tell whether a credential limited to these ranges may be used from an address."""
    if ranges is None:
        return True
    return address is not None and _within(address, _networks(tuple(ranges)))


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Read ranges in CIDR.

    Raises:
        ValueError: one is none.
    """
    return tuple(ip_network(text) for text in texts)


@lru_cache(maxsize=1024)
def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return networks(texts)


def _within(address: Address, some: Sequence[Network]) -> bool:
    return any(address in network for network in some)


def _address(text: str) -> Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    # one machine, whichever way its packets came
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found

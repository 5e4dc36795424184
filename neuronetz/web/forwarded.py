"""Whose request it is, behind proxies: the address that those we trust have forwarded, and nobody else's word.

``X-Forwarded-For`` is a list that each proxy adds to on the right; what stands further left than the first
address that is no trusted proxy's is whatever the client cared to send.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]

HEADER = b"x-forwarded-for"


def client_address(peer: str | None, forwarded: Iterable[bytes], trusted: Networks) -> str | None:
    """The client's address: the rightmost forwarded one that is not trusted, if the peer is; else the peer's.

    ``forwarded``: the values of all ``X-Forwarded-For`` headers, in their order. Where each hop is trusted, it
    is the leftmost. A list that is malformed as far as it was read counts as none. Pure, and total.
    """
    if not trusted or peer is None or not _among(_parse(peer.partition("%")[0]), trusted):
        return peer
    client: Address | None = None
    for hop in reversed(b",".join(forwarded).split(b",")):
        client = _parse(_without_port(hop.decode("latin-1").strip(" \t")))
        if client is None:
            return peer
        if not _among(client, trusted):
            break
    return str(client)


def _among(address: Address | None, trusted: Networks) -> bool:
    return address is not None and any(address in network for network in trusted)


def _parse(text: str) -> Address | None:
    # A zone is free text to Python, and means nothing on another host.
    if "%" in text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket for both families shows an IPv4 peer so, and networks are given as IPv4's.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _without_port(hop: str) -> str:
    """``address:port`` and ``[address]:port``, which some proxies write, without what is not the address."""
    if hop.startswith("["):
        inner, closed, port = hop[1:].partition("]")
        return inner if closed and ":" in inner and (port == "" or _is_port(port)) else ""
    address, colon, port = hop.partition(":")
    return address if colon and "." in address and _is_port(colon + port) else hop


def _is_port(text: str) -> bool:
    digits = text[1:]
    return (
        text.startswith(":") and len(digits) <= 5 and digits.isascii() and digits.isdigit() and int(digits) < 65536
    )

"""Whose word is taken for a client's address: the trusted proxies', as far to the left as they reach."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronetz.errors import SettingsError
from neuronetz.settings import Settings
from neuronetz.web.forwarded import client_address

TRUSTED = tuple(map(ip_network, ("127.0.0.1", "10.0.0.0/8", "fd00::/8")))
PROXY = "10.0.0.1"


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.7", ["203.0.113.9"], "192.0.2.7"),
        (PROXY, ["203.0.113.9"], "203.0.113.9"),
        (PROXY, [], PROXY),
        (PROXY, [""], PROXY),
        ("fd00::1", ["2001:db8::5"], "2001:db8::5"),
        # What a client made up stands further left than what the proxies added.
        (PROXY, ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        (PROXY, ["10.6.6.6, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        (PROXY, ["198.51.100.1", "203.0.113.9", "127.0.0.1,10.0.0.2"], "203.0.113.9"),
        (PROXY, ["<script>, 203.0.113.9"], "203.0.113.9"),
        # All hops are ours: the first of them asked.
        (PROXY, ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # A list with a hop that cannot be read is nobody's word.
        (PROXY, ["203.0.113.9, unknown"], PROXY),
        (PROXY, ["203.0.113.9,"], PROXY),
        (PROXY, ["unknown, 10.0.0.2"], PROXY),
        (PROXY, ["203.0.113.9 10.0.0.2"], PROXY),
        (PROXY, ["203.0.113.999"], PROXY),
        (PROXY, ["fe80::1%<script>"], PROXY),
        (PROXY, ["203.0.113.9\x00"], PROXY),
        (PROXY, ["\xff"], PROXY),
        # Ports, as some proxies write them.
        (PROXY, ["203.0.113.9:4711"], "203.0.113.9"),
        (PROXY, ["[2001:db8::5]"], "2001:db8::5"),
        (PROXY, ["[2001:db8::5]:4711"], "2001:db8::5"),
        (PROXY, ["[2001:db8::5]:99999"], PROXY),
        (PROXY, ["203.0.113.9:" + "1" * 5000], PROXY),
        (PROXY, ["[203.0.113.9]"], PROXY),
        (PROXY, ["203.0.113.9:"], PROXY),
        (PROXY, ["203.0.113.9:http"], PROXY),
        # One address has one spelling, and IPv4 in IPv6 is IPv4.
        (PROXY, ["2001:DB8:0::5"], "2001:db8::5"),
        (PROXY, ["::ffff:203.0.113.9"], "203.0.113.9"),
        (PROXY, ["203.0.113.9, ::ffff:10.0.0.2"], "203.0.113.9"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:192.0.2.7", ["203.0.113.9"], "::ffff:192.0.2.7"),
        ("fd00::1%eth0", ["203.0.113.9"], "203.0.113.9"),
        ("", ["203.0.113.9"], ""),
        (None, ["203.0.113.9"], None),
    ],
)
def test_the_address_is_the_first_that_is_no_proxys(
    peer: str | None, forwarded: list[str], expected: str | None
) -> None:
    assert client_address(peer, [value.encode("latin-1") for value in forwarded], TRUSTED) == expected


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert client_address("127.0.0.1", [b"203.0.113.9"], ()) == "127.0.0.1"


@given(st.ip_addresses(), st.lists(st.binary(max_size=60), max_size=4))
def test_a_stranger_is_never_believed_and_whatever_is_said_an_address_comes_out(
    peer: object, forwarded: list[bytes]
) -> None:
    believed = ip_address(str(peer).partition("%")[0]) in TRUSTED[1]
    found = client_address(str(peer), forwarded, TRUSTED[1:2])
    assert found is not None
    ip_address(found)
    assert believed or found == str(peer)


@given(st.binary(max_size=60), st.ip_addresses(v=4).filter(lambda a: not any(a in n for n in TRUSTED)))
def test_what_a_client_says_changes_nothing_where_its_proxy_adds_it(said: bytes, client: object) -> None:
    assert client_address(PROXY, [said, str(client).encode()], TRUSTED) == str(client)


URLS = {"database_url": "postgresql://db", "redis_url": "redis://r", "ollama_url": "http://o"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ()), (" ", ()), ("127.0.0.1", TRUSTED[:1]), ("127.0.0.1, 10.0.0.0/8,fd00::/8", TRUSTED)],
)
def test_the_setting_lists_addresses_and_networks(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: object
) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", text)
    assert Settings.load(**URLS).trusted_proxies == expected


@pytest.mark.parametrize("text", ["caddy", "10.0.0.1/8", "127.0.0.1 10.0.0.1", "*", "127.0.0.1,secret-token"])
def test_a_wrong_one_is_said_without_being_repeated(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", text)
    with pytest.raises(SettingsError) as caught:
        Settings.load(**URLS)
    assert str(caught.value) == "TRUSTED_PROXIES: must be addresses or networks, such as 127.0.0.1,10.0.0.0/8"

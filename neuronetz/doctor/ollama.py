"""Checks of Ollama: whether it answers here, and whether it answers others too."""

import ipaddress
import socket
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec
import trio

from neuronetz.doctor.finding import Finding, Patient, failed, ok, warning
from neuronetz.errors import GatewayError
from neuronetz.models.discovery import read_tags

_TIMEOUT_S = 5.0
_CONNECT_S = 0.5
_NAME_S = 1.0

# Addresses that are nobody's: a datagram socket that is "connected" to one sends nothing, and tells by which
# address this host would.
_OUTSIDE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


class _Version(msgspec.Struct):
    version: str


async def reachable(patient: Patient) -> list[Finding]:
    """Whether Ollama answers at OLLAMA_URL, and has a model."""
    hint = "see whether Ollama runs there, and whether this host may reach it"
    settings = patient.settings
    try:
        reply = await patient.upstream.fetch("GET", "/api/version", timeout_s=_TIMEOUT_S, limit=65536)
        version = msgspec.json.decode(reply, type=_Version).version
        tags = await patient.upstream.fetch(
            "GET", "/api/tags", timeout_s=_TIMEOUT_S, limit=settings.max_reply_bytes
        )
        models = read_tags(tags, remote_models=settings.remote_models)
    except GatewayError as error:
        return [failed(f"Ollama at {_host(settings.ollama_url)}: {error.message}", hint)]
    except (msgspec.DecodeError, ValueError):
        return [failed(f"what answers at {_host(settings.ollama_url)} is no Ollama", "see OLLAMA_URL")]
    if not models:
        return [warning(f"Ollama {version[:40]} has no model", "install one: ollama pull llama3.2")]
    return [ok(f"Ollama {version[:40]} answers, models: {len(models)}")]


async def exposure(patient: Patient) -> list[Finding]:
    """Whether Ollama can be reached past the gateway, as far as that can be seen from here."""
    parts = urlsplit(patient.settings.ollama_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        answers = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return [failed(f"the host {host} of OLLAMA_URL has no address", "see OLLAMA_URL, and the name service")]
    addresses = {ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in answers}
    public = sorted(str(address) for address in addresses if address.is_global)
    if public:
        hint = "whoever reaches it needs no key: put it on loopback or a private network, behind a firewall"
        return [warning(f"OLLAMA_URL leads to a public address: {', '.join(public)}", hint)]
    if not all(address.is_loopback for address in addresses):
        return [ok("OLLAMA_URL leads to a private address; see that only gateways reach it")]
    here = await outside_addresses()
    open_at = [address for address in here if await _answers(address, port)]
    if open_at:
        hint = "whoever reaches it needs no key: set OLLAMA_HOST=127.0.0.1 where Ollama is started"
        return [warning(f"Ollama answers at {', '.join(open_at)} too, port {port}", hint)]
    return [ok("no other address of this host leads to Ollama")]


async def outside_addresses() -> list[str]:
    """The addresses by which others reach this host, as far as they can be told."""
    found = set()
    for family, outside in _OUTSIDE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((outside, 9))
                found.add(sock.getsockname()[0])
        except OSError:
            continue
    # A host's own name may be one that a name service is asked for in vain.
    with trio.move_on_after(_NAME_S), suppress(OSError):
        answers = await trio.socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
        found |= {str(address[0]).partition("%")[0] for *_, address in answers}
    return sorted(address for address in found if not ipaddress.ip_address(address).is_loopback)


async def _answers(address: str, port: int) -> bool:
    with trio.move_on_after(_CONNECT_S):
        try:
            stream = await trio.open_tcp_stream(address, port)
        except OSError:
            return False
        await trio.aclose_forcefully(stream)
        return True
    return False


def _host(url: str) -> str:
    """A URL's host and port, without what else it may hold."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else f"{parts.hostname}"

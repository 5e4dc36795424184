"""The real Caddy with the shipped Caddyfile, in front of this test's gateway."""

import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from neuronetz.embedded.ports import held_port

CADDYFILE = Path(__file__).parents[2] / "Caddyfile"
CADDY = shutil.which("caddy")


@dataclass(frozen=True)
class Proxy:
    """A running Caddy: ``authority`` has signed its certificate, ``log`` takes what it says."""

    port: int
    http_port: int
    authority: Path
    log: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    def client(self, key: str | None = None, *, http2: bool = False, **options: Any) -> httpx.AsyncClient:
        """A client that speaks HTTP/2 alone, or HTTP/1 alone."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        options = {"verify": self.trusting(), "http1": not http2, "http2": http2, **options}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30, trust_env=False, **options)

    @asynccontextmanager
    async def connected(self, *protocols: str) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
        """A connection at the level of bytes, with TLS; it is closed without a word, as by a process that died."""
        context = self.trusting()
        context.set_alpn_protocols(list(protocols) or ["http/1.1"])
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            secure = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
            await secure.do_handshake()
            yield secure


RunCaddy = Callable[..., AbstractAsyncContextManager[Proxy]]


@pytest.fixture
def caddy(own_folder: Path) -> RunCaddy:
    """Run Caddy before so many gateways; keyword arguments are the Caddyfile's variables."""
    if CADDY is None:
        pytest.skip("caddy is not installed: apt-get install caddy")

    @asynccontextmanager
    async def run(*upstreams: str, **variables: str) -> AsyncIterator[Proxy]:
        with held_port() as port, held_port() as http_port:
            async with serving(port, http_port, *upstreams, **variables) as proxy:
                yield proxy

    @asynccontextmanager
    async def serving(port: int, http_port: int, *upstreams: str, **variables: str) -> AsyncIterator[Proxy]:
        proxy = Proxy(port, http_port, own_folder / "caddy/pki/authorities/local/root.crt", own_folder / "log")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(own_folder),
            "XDG_DATA_HOME": str(own_folder),
            "XDG_CONFIG_HOME": str(own_folder),
            "GATEWAY_UPSTREAMS": " ".join(url.removeprefix("http://") for url in upstreams),
            "HTTPS_PORT": str(port),
            "HTTP_PORT": str(http_port),
            **variables,
        }
        with proxy.log.open("ab") as log:
            process = await trio.lowlevel.open_process(
                [str(CADDY), "run", "--config", str(CADDYFILE), "--adapter", "caddyfile"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            await _ready(proxy, process)
            yield proxy
        finally:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                await process.wait()

    return run


@pytest.fixture
async def proxy(gateway: Any, caddy: RunCaddy) -> AsyncIterator[Proxy]:
    async with caddy(gateway.base_url) as proxy:
        yield proxy


async def _ready(proxy: Proxy, process: trio.Process) -> None:
    with trio.fail_after(30):
        while True:
            assert process.poll() is None, proxy.log.read_text()
            if proxy.authority.exists():
                try:
                    async with proxy.client() as client:
                        await client.get("/")
                    return
                except (httpx.TransportError, ssl.SSLError):
                    pass
            await trio.sleep(0.02)

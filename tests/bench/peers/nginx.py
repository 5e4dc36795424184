"""nginx, which does nothing but pass bytes on."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from neuronetz.embedded.ports import held_port
from tests.bench.peers.peer import Peer, Serving, listening
from tests.bench.processes import started


class Nginx(Peer):
    """A bare reverse proxy: no keys, no limits, no books. The floor for what only passes bytes on."""

    name = "nginx"
    _CONFIGURATION = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr;
events {{ worker_connections 16384; }}
http {{
    access_log off; keepalive_requests 1000000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    upstream model {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{
            proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; proxy_read_timeout 60s;
        }}
    }}
}}
"""

    def __init__(self) -> None:
        # Where distributions put it, which is not in everybody's path.
        self._program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")

    def absent(self) -> str | None:
        return None if self._program else "nginx is not installed: apt-get install nginx-light"

    @asynccontextmanager
    async def opened(self, upstream_port: int, folder: Path) -> AsyncIterator[Serving]:
        log = folder / "nginx.log"
        with held_port() as port:
            configuration = folder / "nginx.conf"
            configuration.write_text(self._CONFIGURATION.format(upstream=upstream_port, port=port))
            command = [str(self._program), "-p", str(folder), "-c", str(configuration), "-e", "stderr"]
            async with started(command, log) as process:
                await listening(port, process, log)
                yield Serving(port, (process.pid,))

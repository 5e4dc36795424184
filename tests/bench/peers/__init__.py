"""What is measured beside each other. To add a peer, write a module as short as ``nginx.py`` and list its class here."""

from tests.bench.peers.bare import BareTrio
from tests.bench.peers.litellm import LiteLLM
from tests.bench.peers.neuronetz import Neuronetz
from tests.bench.peers.nginx import Nginx
from tests.bench.peers.peer import Direct, Peer, Serving
from tests.bench.peers.portkey import Portkey

PEERS: tuple[type[Peer], ...] = (Direct, Nginx, BareTrio, LiteLLM, Portkey, Neuronetz)

__all__ = ["PEERS", "BareTrio", "Direct", "LiteLLM", "Neuronetz", "Nginx", "Peer", "Portkey", "Serving"]

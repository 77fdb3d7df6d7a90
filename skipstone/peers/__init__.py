"""Other people's accelerators, run as themselves in the same bench."""

from .base import Peer as Peer

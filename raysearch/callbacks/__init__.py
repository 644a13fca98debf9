"""Who follows a run besides the person before it: one protocol, and what speaks it, one service a file."""

from raysearch.callbacks.followers import Followers, find_callback
from raysearch.callbacks.protocol import Callback

__all__ = ["Callback", "Followers", "find_callback"]

"""Capture the graph; decide where quantizers go and which of them share a width."""

from raysearch.placement.place import place_quantizers

__all__ = ["place_quantizers"]

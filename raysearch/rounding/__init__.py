"""Rounding: the integer codes and scales of every weight, chosen by what the weight is multiplied with."""

from raysearch.rounding.round_weights import round_weights
from raysearch.rounding.sequential import round_sequentially

__all__ = ["round_sequentially", "round_weights"]

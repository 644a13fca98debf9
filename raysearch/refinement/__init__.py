"""Refinement: the chosen assignment made better, without labels and without training data."""

from raysearch.refinement.refine import refine
from raysearch.refinement.winner import Winner

__all__ = ["Winner", "refine"]

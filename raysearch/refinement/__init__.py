"""Refinement: the chosen assignment made better, without labels and without training data."""

from raysearch.refinement.refine import Winner, refine

__all__ = ["Winner", "refine"]

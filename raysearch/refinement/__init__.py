"""Refinement: the chosen assignment made better, without labels and without training data."""

from raysearch.refinement.refine import refine

__all__ = ["refine"]

"""The second moments of a row's inputs, damped and factored: whole, or in one buffer of float32."""

from raysearch.rounding.factors.compact import CompactFactor, factorise_compactly
from raysearch.rounding.factors.dense import DenseFactor, factorise
from raysearch.rounding.factors.factor import Factor

__all__ = ["CompactFactor", "DenseFactor", "Factor", "factorise", "factorise_compactly"]

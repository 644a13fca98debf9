"""What second moments say of a weight, by the readers that they were taken of."""

from __future__ import annotations

import torch

from raysearch.rounding.problem import layout_of


def values_or_counts(moment):
    return moment.values if moment.values.ndim == 1 else moment.matrices()


def values_of(moments, weight):
    """Every (reader, H) of a weight."""
    return [
        (reader, torch.from_numpy(values_or_counts(moment)))
        for readers, moment in moments.sums.items()
        for reader in readers
        if reader.weight == weight
    ]


def quadratic(moments, weight, delta):
    """tr(Δ H Δᵀ) by the moments, one number for the whole weight."""
    total = torch.zeros(())
    for reader, matrix in values_of(moments, weight):
        layout = layout_of(reader)
        part = delta[slice(*reader.rows)]
        if reader.columns != (0, 0):
            part = part[:, slice(*reader.columns)]
        if reader.kind == "embedding":
            total = total + (matrix[:, None] * part.square()).sum()
            continue
        rows = layout.rows(part)
        total = total + ((rows @ matrix) * rows).sum()
    return total

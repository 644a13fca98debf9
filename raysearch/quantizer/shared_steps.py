"""Scales that are small integers times one float16: the float16 that they have in common.

n  blocks    k  scales of a block
"""

from __future__ import annotations

import torch
from torch import Tensor

MANTISSA_BITS = 24
"""Of a float32."""


def shared_steps(scale_nk: Tensor, highest: int) -> Tensor:
    """The float16 of which all scales of a block are integers 0 … highest; 0 where there is none, [n].

    Products of 11 and at most 7 bits are exact in float32, so scales say by themselves what they are made of:
    all are multiples of their greatest common divisor g, and of g/j for every integer j. The first g/j that
    is a float16 will do; whichever it is, the products are the same. Of a block of zeros it is 1.

    Cost: a few passes over the scales; more for blocks of which g itself is no float16.

    Args:
        scale_nk: 0 or more, finite, float32.
        highest: the greatest integer, at most 127.

    Example:
        >>> shared_steps(torch.tensor([[0.75, 1.5, 1.25], [0.1, 0.2, 0.7]]), 31).tolist()
        [0.25, 0.0]
    """
    whole_nk, exponent_n = _integers(scale_nk)
    divisor_n = _greatest_divisor(whole_nk)
    largest_n = torch.where(divisor_n > 0, whole_nk.amax(1) // divisor_n.clamp_min(1), 0)
    step_n = torch.where(divisor_n > 0, torch.zeros_like(scale_nk[:, 0]), torch.ones_like(scale_nk[:, 0]))
    open_n = ((divisor_n > 0) & (largest_n <= highest)).nonzero()[:, 0]
    for factor in range(1, highest + 1):
        if not len(open_n):
            break
        divisor = torch.ldexp(divisor_n[open_n].double(), exponent_n[open_n])
        half = (divisor / factor).to(torch.float16)
        is_exact = half.double() * factor == divisor
        step_n[open_n] = torch.where(is_exact, half.float(), step_n[open_n])
        open_n = open_n[~is_exact]
        open_n = open_n[largest_n[open_n] * (factor + 1) <= highest]
    return step_n


def _integers(scale_nk: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and an exponent of each block whose products the scales are; scales far apart are cut off."""
    fraction_nk, exponent_nk = torch.frexp(scale_nk.float())
    lowest_n = torch.where(scale_nk > 0, exponent_nk, exponent_nk.amax() + 1).amin(1)
    shift_nk = (exponent_nk - lowest_n[:, None]).clamp(0, 62 - MANTISSA_BITS)
    whole_nk = (fraction_nk.double() * 2.0**MANTISSA_BITS).long() << shift_nk.long()
    return whole_nk, lowest_n - MANTISSA_BITS


def _greatest_divisor(whole_nk: Tensor) -> Tensor:
    """Of all integers of a block, [n]; 0 of zeros."""
    while whole_nk.shape[1] > 1:
        half = (whole_nk.shape[1] + 1) // 2
        first, second = whole_nk[:, :half], whole_nk[:, half:]
        whole_nk = torch.cat([torch.gcd(first[:, : second.shape[1]], second), first[:, second.shape[1] :]], 1)
    return whole_nk[:, 0]

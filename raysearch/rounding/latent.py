"""Float weights that a quantizer rounds to given codes."""

from __future__ import annotations

import torch
from torch import Tensor

from raysearch.quantizer import Quantizer
from raysearch.records.rounding import RoundedWeight

REACH = 0.49
"""How far a latent weight may lie from its code, in steps: less than the half at which rounding turns."""


def latent_weight(weight: Tensor, quantizer: Quantizer, rounded: RoundedWeight) -> Tensor:
    """The float weight nearest to `weight` that the quantizer rounds to the table's codes.

        clamp(w / s, q − z − 0.49, q − z + 0.49)·s

    The fake-quantized values are then (q − z)·s bit for bit, and training starts from there. Of codes that
    are the quantizer's own, as method "nearest" has them, the weight comes back as it is.

    Args:
        weight: the float weight.
        quantizer: with the range of `rounded` in force.
        rounded: the codes.
    """
    codes = torch.from_numpy(rounded.codes.copy()).to(weight.device)
    with torch.no_grad():
        if torch.equal(quantizer.codes(weight), codes):
            return weight.detach().clone()
        scale = quantizer.effective_scale()
        relative = codes.float() - quantizer.zero_points()
        nearest = torch.clamp(weight.float() / scale, relative - REACH, relative + REACH)
        latent = (nearest * scale).to(weight.dtype)
        # In half precision a value that far from its code may be stored as one beyond the turn.
        keeps = quantizer.codes(latent) == codes
        return torch.where(keeps, latent, (relative * scale).to(weight.dtype))

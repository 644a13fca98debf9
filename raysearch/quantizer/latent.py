"""Float weights that a quantizer rounds to given codes."""

from __future__ import annotations

import torch
from torch import Tensor

from raysearch.quantizer.blocks import spread
from raysearch.quantizer.quantizer import Quantizer
from raysearch.records import CodeArray

REACH = 0.49
"""How far a latent weight may lie from its code, in steps: less than the half at which rounding turns."""


def latent_weight(weight: Tensor, quantizer: Quantizer, codes: CodeArray) -> Tensor:
    """The float weight nearest to `weight` that the quantizer rounds to the given codes.

        clamp(w / s, q − z − 0.49, q − z + 0.49)·s

    With minima m it is that of w + m, less m. The fake-quantized values are then those of the codes bit for
    bit, and training starts from there. Of codes that are the quantizer's own, as method "nearest" has them,
    the weight comes back as it is.

    Args:
        weight: the float weight.
        quantizer: with the range in force that the codes were chosen with.
        codes: in the weight's shape.
    """
    target = torch.from_numpy(codes.copy()).to(weight.device)
    with torch.no_grad():
        if torch.equal(quantizer.codes(weight), target):
            return weight.detach().clone()
        scale = spread(quantizer.effective_scale(), weight.shape, quantizer.granularity)
        relative = target.float() - spread(quantizer.zero_points(), weight.shape, quantizer.granularity)
        minimum = torch.zeros(())
        if quantizer.minimum is not None:
            minimum = spread(quantizer.minimum, weight.shape, quantizer.granularity)
        steps = (weight.float() + minimum) / scale
        reached = torch.clamp(steps, relative - REACH, relative + REACH)
        # A weight within reach of its code stays bit for bit, which a division and a product may not keep.
        latent = torch.where(reached == steps, weight, (reached * scale - minimum).to(weight.dtype))
        # In half precision a value that far from its code may be stored as one beyond the turn.
        keeps = quantizer.codes(latent) == target
        return torch.where(keeps, latent, (relative * scale - minimum).to(weight.dtype))

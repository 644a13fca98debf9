"""A layer of every kind and way that a weight is read in, with the shape of its input."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Call(nn.Module):
    """A parameter that a function reads."""

    def __init__(self, shape, function):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.function = function

    def forward(self, x):
        return self.function(x, self.weight)


LAYERS = {
    "linear": (lambda: nn.Linear(5, 3, bias=False), (4, 5)),
    "linear of many axes": (lambda: nn.Linear(5, 3, bias=False), (4, 2, 3, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, bias=False), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), bias=False), (2, 3, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 3, 2), stride=2, padding=1, bias=False), (2, 2, 4, 5, 6)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False), (2, 6, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False), (2, 4, 5, 5)),
    "dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=(2, 3), padding=2, bias=False), (2, 2, 9, 9)),
    "same": (lambda: nn.Conv1d(2, 3, 4, padding="same", dilation=3, bias=False), (2, 2, 12)),
    "valid": (lambda: nn.Conv1d(2, 3, 4, padding="valid", bias=False), (2, 2, 12)),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", bias=False), (2, 2, 5, 5)),
    "circular": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular", bias=False), (2, 2, 7)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 2, 4, stride=3, padding=1, bias=False), (2, 3, 5)),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(
            4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2, bias=False
        ),
        (2, 4, 3, 4),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, dilation=2, bias=False), (2, 2, 3, 2, 3)),
    "transposed, cut": (lambda: nn.ConvTranspose1d(2, 3, 2, stride=2, padding=2, bias=False), (2, 2, 6)),
    "call of linear": (lambda: Call((3, 5), F.linear), (4, 5)),
    "call of a part": (lambda: Call((6, 5), lambda x, w: F.linear(x[:, 1:4], w[2:5, 1:4])), (4, 5)),
    "call of conv2d": (
        lambda: Call((3, 1, 3, 3), lambda x, w: F.conv2d(x, w, None, 2, groups=3)),
        (2, 3, 5, 5),
    ),
    "call by keywords": (
        lambda: Call((2, 3, 3), lambda x, w: F.conv1d(weight=w, input=x, stride=(2,), padding=1)),
        (2, 2 + 1, 6),
    ),
    "product": (lambda: Call((5, 3), lambda x, w: x @ w), (4, 2, 5)),
    "product from the left": (lambda: Call((3, 5), lambda x, w: w @ x), (4, 5, 2)),
    "product with a turned weight": (lambda: Call((3, 5), lambda x, w: x @ w.t()), (4, 5)),
    "linear of a turned weight": (lambda: Call((5, 3), lambda x, w: F.linear(x, w.T)), (4, 5)),
    "product of a part": (lambda: Call((5, 6), lambda x, w: x @ w[:, 2:4]), (4, 5)),
    "addmm": (lambda: Call((5, 3), lambda x, w: torch.addmm(torch.zeros(3).double(), x, w)), (4, 5)),
    "batched": (lambda: Call((4, 5, 3), lambda x, w: torch.bmm(x, w)), (4, 2, 5)),
    "batched from the left": (lambda: Call((4, 3, 5), lambda x, w: torch.matmul(w, x)), (2, 4, 5, 6)),
    "batched, one input": (lambda: Call((4, 5, 3), lambda x, w: x @ w), (2, 5)),
    "einsum": (lambda: Call((5, 3), lambda x, w: torch.einsum("btc,cd->bdt", x, w)), (2, 4, 5)),
    "einsum of a list": (lambda: Call((3, 5), lambda x, w: torch.einsum("dc,...ca->...da", (w, x))),
                         (2, 5, 4)),
    "bilinear": (lambda: Call((3, 5, 5), lambda x, w: F.bilinear(x, x.flip(1), w)), (4, 5)),
    "two calls": (lambda: Call((4, 4), lambda x, w: F.linear(F.linear(x, w).relu(), w)), (3, 4)),
    "chunks": (
        lambda: Call((6, 4), lambda x, w: sum(F.linear(x * (i + 1), p) for i, p in enumerate(w.chunk(3)))),
        (3, 4),
    ),
}  # fmt: skip

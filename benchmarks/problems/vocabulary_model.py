"""A small causal language model with a vocabulary of 32,000, and its exact Gauss-Newton traces.

Logits are z = W h of the last hidden states h. So every weight below the head has Tr(Jᵀ Λ J) = Σ ‖Jₕᵀ a‖²
over the columns a of a factor of Wᵀ Λ W, as few as h has values; the head has Σ_t ‖h_t‖² Tr Λ_t. A table that
is also the head has both, and twice their product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.responses import EncoderBlock
from raysearch.evaluation import DataSet, Replica, ShardView
from raysearch.evaluation.curvature.graphs import require_gradients
from raysearch.evaluation.forward import frozen_eval
from raysearch.sensitivity.estimators.sample_gradients import SampleGradients

WORDS, TOKENS, WIDTH = 32_000, 32, 128


class CausalBlock(EncoderBlock):
    """The encoder's block with a causal mask."""

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Language(nn.Module):
    """Two causal blocks of width 128 over 32 tokens."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        nn.init.normal_(self.embed.weight, std=WIDTH**-0.5)
        self.blocks = nn.Sequential(CausalBlock(WIDTH), CausalBlock(WIDTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def hidden(self, embedded: Tensor) -> Tensor:
        """States that the head reads."""
        return self.norm(self.blocks(embedded))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(self.embed(tokens)))


def text_of(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts and their next words: as frequent as 1/rank, and half of them set by the word before."""
    text = (1 / torch.arange(1.0, WORDS + 1)).multinomial(count * (TOKENS + 1), True, generator=generator)
    text = text.reshape(count, TOKENS + 1)
    for place in range(1, TOKENS + 1):
        follows = torch.rand(count, generator=generator) < 0.5
        text[:, place] = torch.where(follows, (text[:, place - 1] * 31 + 17) % WORDS, text[:, place])
    return text[:, :-1], text[:, 1:]


def language_traces(replica: Replica, names: tuple[str, ...]) -> np.ndarray:
    """The exact traces of a `Language`, without a sum over the vocabulary's columns."""
    model: Any = replica.model
    batch = replica.shards[DataSet.CALIBRATION][0]
    tokens, tied = batch[0], model.head.weight is model.embed.weight
    below = tuple(name for name in names if name != "head.weight")
    body = Replica(
        model, lambda _, batch: model.hidden(model.embed(batch[0])), replica.shards, replica.divergence
    )
    with frozen_eval(model), sdpa_kernel(SDPBackend.MATH):
        require_gradients(body)
        gradients = SampleGradients(ShardView(body, DataSet.CALIBRATION, 0), below, batch)
        h, table = gradients.output.detach().double(), model.head.weight.detach().double()
        p = (h @ table.T).softmax(-1)
        mean = p @ table
        curved = torch.stack([(q[:, None] * table).T @ table for q in p.flatten(0, 1)])
        curved = curved.reshape(*p.shape[:2], WIDTH, WIDTH) - mean[..., :, None] * mean[..., None, :]
        curved /= TOKENS
        values, vectors = torch.linalg.eigh(curved)
        factor = (vectors * values.clamp(min=0).sqrt()[..., None, :]).float()
        traces = dict.fromkeys(below, 0.0)
        for place in range(TOKENS):
            for first in range(0, WIDTH, 2):
                columns = [torch.zeros(h.shape), torch.zeros(h.shape)]
                for column, index in zip(columns, (first, first + 1), strict=True):
                    column[:, place] = factor[:, place, :, index]
                for name, norms in gradients.squared_norms(columns).items():
                    traces[name] += float(norms.sum())
        direct = float((h.square().sum(-1) * (1 - p.square().sum(-1))).sum()) / TOKENS
        if not tied:
            traces["head.weight"] = direct
        else:
            traces["embed.weight"] += direct + 2 * cross_terms(model, tokens, h, p, table, mean)
    return np.array([traces[name] for name in names]) / len(tokens)


def cross_terms(model: Any, tokens: Tensor, h: Tensor, p: Tensor, table: Tensor, mean: Tensor) -> float:
    """Σ_{t,s} ⟨h_t, (∂h_t/∂x_s)ᵀ (Λ_t W)_{word s}⟩: the table as the head against the table as the input."""
    total = 0.0
    for n in range(len(tokens)):
        x = model.embed(tokens[n : n + 1]).detach()
        jacobian = torch.func.jacrev(model.hidden, chunk_size=256)(x)[0, :, :, 0].detach().double()
        rows = p[n][:, tokens[n], None] * (table[tokens[n]] - mean[n][:, None]) / TOKENS
        total += float(torch.einsum("tisj,tj,tsi->", jacobian, h[n], rows))
    return total

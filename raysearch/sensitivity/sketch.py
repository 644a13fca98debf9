"""Random projection of large outputs that keeps inner products in the mean.

A sample's vector x of n values is cut into blocks of k. Block b is multiplied by random signs, turned by a
random offset r_b (mod k), and the blocks are added up: Sx, k values. This is a CountSketch whose buckets
cannot collide inside a block. For two vectors x and y

    E⟨Sx, Sy⟩ = ⟨x, y⟩
    Var⟨Sx, Sy⟩ = (1/k)·[‖x‖²‖y‖² + ⟨x, y⟩² − Σ_b (‖x_b‖²‖y_b‖² + ⟨x_b, y_b⟩²)]

since entries of different blocks meet with probability 1/k. With n ≤ k nothing is projected.

Source: Charikar, Chen and Farach-Colton 2002; Weinberger et al., Feature Hashing, ICML 2009 (the variance).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raysearch.seeding import derive_seed

_AT_ONCE = 2**20
"""Values turned in one go: the index of a turn takes 8 bytes each."""


class Sketch:
    """The projections of the samples of one shard; the same for every option.

    The signs and offsets of a sample come from (run seed, shard, sample) alone, by numpy's Philox, whose raw
    stream is stable between versions; so they are alike on every worker and device.

    Args:
        num_outputs: n, values of one sample.
        size: k, values that are kept.
        seed: the run's seed.
        shard: index of the shard.
    """

    def __init__(self, num_outputs: int, size: int, seed: int, shard: int) -> None:
        self.num_outputs = num_outputs
        self.size = min(num_outputs, size)
        self._seed = seed
        self._shard = shard

    @property
    def is_exact(self) -> bool:
        """Whether nothing is projected."""
        return self.size == self.num_outputs

    def project(self, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Sketches of some samples, and how much their squared norms vary.

        Work: O(n) a sample; memory: n bytes of signs and n values, one sample at a time.

        Args:
            rows: float64 [N, n].
            first: index in the shard of the first row.

        Returns:
            sketches float64 [N, k], and Var‖Sx‖² float64 [N] (0 where nothing is projected).
        """
        if self.is_exact:
            return rows, rows.new_zeros(len(rows))
        sketches, variances = [], []
        for index, row in enumerate(rows):
            sketch, variance = self._project_one(row, first + index)
            sketches.append(sketch)
            variances.append(variance)
        return torch.stack(sketches), torch.stack(variances)

    def _project_one(self, row: Tensor, sample: int) -> tuple[Tensor, Tensor]:
        signs, offsets = self._draw(sample)
        blocks = torch.nn.functional.pad(row, (0, len(offsets) * self.size - self.num_outputs))
        blocks = blocks.reshape(len(offsets), self.size)
        norms = blocks.square().sum(1)
        variance = 2 * (norms.sum().square() - norms.square().sum()) / self.size
        blocks = blocks * torch.from_numpy(signs).to(row.device).reshape(blocks.shape)
        turns = torch.from_numpy(offsets).to(row.device)
        places = torch.arange(self.size, device=row.device)
        total = row.new_zeros(self.size)
        step = max(1, _AT_ONCE // self.size)
        for start in range(0, len(offsets), step):
            index = (places - turns[start : start + step, None]) % self.size
            total += blocks[start : start + step].gather(1, index).sum(0)
        return total, variance

    def _draw(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        """Signs, int8 [m·k], and offsets, int64 [m], of the m blocks of one sample."""
        stream = np.random.Philox(derive_seed(self._seed, "sketch", self._shard, sample))
        num_blocks = -(-self.num_outputs // self.size)
        # The remainder of 64 bits by k ≤ 2³² is uniform to one part in 2³².
        offsets = (stream.random_raw(num_blocks) % np.uint64(self.size)).astype(np.int64)
        words = stream.random_raw(-(-num_blocks * self.size // 64)).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), count=num_blocks * self.size)
        return bits.astype(np.int8) * 2 - 1, offsets

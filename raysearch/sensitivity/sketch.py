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
        self.seed = seed
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

    def signs(self, sample: int) -> Tensor:
        """The random signs of one sample's values, int8 [n]."""
        return torch.from_numpy(self._draw(sample)[0][: self.num_outputs])

    def offsets(self, sample: int) -> np.ndarray:
        """By how much each block of one sample is turned, int64 [m]."""
        return self._draw(sample)[1]

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
        stream = np.random.Philox(derive_seed(self.seed, "sketch", self._shard, sample))
        num_blocks = -(-self.num_outputs // self.size)
        # The remainder of 64 bits by k ≤ 2³² is uniform to one part in 2³².
        offsets = (stream.random_raw(num_blocks) % np.uint64(self.size)).astype(np.int64)
        words = stream.random_raw(-(-num_blocks * self.size // 64)).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), count=num_blocks * self.size)
        return bits.astype(np.int8) * 2 - 1, offsets


class SketchSum:
    """The sketch of one sample, added up as its values come.

    Up to 2²⁰ values are added in float32, and their sums in float64. Memory: on a GPU some copies of a piece.

    Args:
        size: k, values that are kept.
        offsets: by how much each block is turned.
    """

    def __init__(self, size: int, offsets: np.ndarray) -> None:
        self._size = size
        self._offsets = offsets
        self._norms = np.zeros(len(offsets))
        self._total = np.zeros(size)
        # Values are written past the end instead of around it, so that a block is one slice.
        self._line = np.zeros(2 * size, np.float32)
        self._num_in_line = 0

    def add(self, first: int, values: Tensor) -> None:
        """Take some values of the row, each times its sign.

        Args:
            first: index in the row of the first value.
            values: float32, one dimension.
        """
        block, lead = divmod(first, self._size)
        start = 0
        if lead:
            start = min(self._size - lead, len(values))
            self._add_part(block, lead, values[:start])
            block += 1
        count = (len(values) - start) // self._size
        end = start + count * self._size
        if count:
            self._add_blocks(block, values[start:end].reshape(count, self._size))
        if end < len(values):
            self._add_part(block + count, 0, values[end:])
        if self._num_in_line > _AT_ONCE:
            self._flush()

    def finish(self) -> tuple[Tensor, float]:
        """The sketch, float64 [k], and the variance of its squared norm, as `Sketch.project` gives them."""
        self._flush()
        norms = self._norms
        variance = 2 * (norms.sum() ** 2 - (norms**2).sum()) / self._size
        return torch.from_numpy(self._total), float(variance)

    def _add_blocks(self, block: int, values: Tensor) -> None:
        count = len(values)
        norms = torch.linalg.vector_norm(values, dim=1).cpu().numpy()
        self._norms[block : block + count] += norms.astype(np.float64) ** 2
        offsets = self._offsets[block : block + count]
        if values.device.type != "cpu":
            self._total += _turned_sum(values, offsets).cpu().numpy()
            return
        # One slice a block: by an index it would take longer than all of judging.
        for part, offset in zip(values.numpy(), offsets.tolist(), strict=True):
            target = self._line[offset : offset + self._size]
            np.add(target, part, out=target)
        self._num_in_line += values.numel()

    def _add_part(self, block: int, lead: int, values: Tensor) -> None:
        part = values.cpu().numpy()
        self._norms[block] += float(np.square(part, dtype=np.float64).sum())
        start = int(self._offsets[block]) + lead
        self._line[start : start + len(part)] += part
        self._num_in_line += len(part)

    def _flush(self) -> None:
        self._total += self._line.reshape(2, self._size).sum(0, dtype=np.float64)
        self._line[:] = 0
        self._num_in_line = 0


def _turned_sum(blocks: Tensor, offsets: np.ndarray) -> Tensor:
    """Σ of blocks, each turned by its offset, float64 [k]."""
    size = blocks.shape[1]
    turns = torch.from_numpy(offsets).to(blocks.device)
    index = (torch.arange(size, device=blocks.device) - turns[:, None]) % size
    turned: Tensor = blocks.gather(1, index).sum(0, dtype=torch.float64)
    return turned

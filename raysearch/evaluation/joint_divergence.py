"""The label-free objective of a model with several outputs: a weighted mean of one divergence an output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raysearch.errors import TaskError
from raysearch.evaluation.batches import Batch
from raysearch.evaluation.divergence import Divergence
from raysearch.evaluation.outputs import Judged, named_outputs
from raysearch.evaluation.positions import Positions


@dataclass(frozen=True)
class OutputPart:
    """One judged output.

    Attributes:
        name: its path in what the model returns, such as "logits" or "1.boxes".
        divergence: how it is judged.
        weight: its share of the whole; all shares sum to 1.
    """

    name: str
    divergence: Divergence
    weight: float


@dataclass(frozen=True)
class JointDivergence:
    """D = Σ weight · D of each output; Λ is block diagonal over the outputs.

    A judged output is a tuple with one tensor a part, in the order of the parts.

    Attributes:
        parts: the outputs that count, the first of them first.
    """

    parts: tuple[OutputPart, ...]

    @property
    def kind(self) -> str:
        """The kind of the first output."""
        return self.parts[0].divergence.kind

    @property
    def positions(self) -> Positions | None:
        """Those of all outputs."""
        return self.parts[0].divergence.positions

    def judged(self, outputs: Any, batch: Batch | None = None) -> Judged:
        """What is judged of what a model returned.

        Args:
            outputs: the model's.
            batch: what they are of; None: every position counts.

        Raises:
            TaskError: one of them is missing.
            DataError: see `masked`.
        """
        named = named_outputs(outputs)
        missing = [part.name for part in self.parts if part.name not in named]
        if missing:
            raise TaskError(
                f"the model's output '{missing[0]}' was there on the first calibration shard and is not on "
                f"another batch, which has {', '.join(named) or 'none'}; leave it out of what is judged "
                f'(objective.output_weights."{missing[0]}"=0), or give Task(forward=...) that returns the '
                f"same outputs for every batch."
            )
        if batch is None:
            return tuple(named[part.name] for part in self.parts)
        return tuple(part.divergence.judged(named[part.name], batch) for part in self.parts)

    def per_sample(self, outputs: Judged, reference: Judged) -> Tensor:
        """D for each sample, shape [N], float64; differentiable in `outputs`."""
        terms = [
            part.weight * part.divergence.per_sample(z, expected)
            for part, z, expected in zip(self.parts, outputs, reference, strict=True)
        ]
        return torch.stack(terms).sum(0)

    def weighted(self, delta: Judged, reference: Judged) -> Tensor:
        """Λ^½ δ, flattened per sample, shape [N, all values], float64."""
        rows = [
            math.sqrt(part.weight) * part.divergence.weighted(d, expected)
            for part, d, expected in zip(self.parts, delta, reference, strict=True)
        ]
        return torch.cat(rows, 1)

    def agreement(self, outputs: Judged, reference: Judged) -> float | None:
        """That of the first output that has classes; None where none has."""
        for part, z, expected in zip(self.parts, outputs, reference, strict=True):
            if part.divergence.kind == "kl":
                return part.divergence.agreement(z, expected)
        return None


Objective = Divergence | JointDivergence
"""How outputs are judged: one of them, or several."""

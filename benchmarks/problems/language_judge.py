"""What language models do to the test text, against the float model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.fashion import FloatArray
from benchmarks.problems.language_cases import Case
from benchmarks.problems.peer_scores import next_token_loss


@dataclass(frozen=True)
class Cell:
    """What a model does to the test text.

    Attributes:
        divergences: KL of next-token probabilities to the float model's, a mean a window.
        losses: cross-entropy of the next token, a mean a window.
    """

    divergences: FloatArray
    losses: FloatArray

    def __str__(self) -> str:
        return f"{np.exp(self.losses.mean()):.2f} | {with_error(self.divergences, '.2f')}"


def with_error(values: FloatArray, form: str) -> str:
    """The mean × 1000 and its standard error over windows."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{1000 * values.mean():{form}} ± {1000 * error:.2f}"


class Judge:
    """Measures models on the test windows; the float model's outputs are kept on disk."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.windows = case.windows["test"]
        # A file a window: over a large vocabulary all of them would be most of the memory.
        self.paths = [folder / f"float-{index}.npy" for index in range(len(self.windows))]
        for path, ids in zip(self.paths, self.windows, strict=True):
            if not path.exists():
                outputs = log_probabilities(case.task.model, ids[None])
                part = path.with_suffix(".part.npy")
                np.save(part, outputs.numpy())
                part.rename(path)

    def __call__(self, model: nn.Module | None) -> Cell:
        """A model's cell; None: the float model's."""
        divergences, losses = [], []
        for path, ids in zip(self.paths, self.windows, strict=True):
            expected = torch.from_numpy(np.load(path))
            outputs = expected if model is None else log_probabilities(model, ids[None])
            losses.append(float(next_token_loss(outputs, ids[None]).double().mean()))
            divergences.append(float((expected.exp() * (expected - outputs)).double().sum(-1).mean()))
        return Cell(np.array(divergences), np.array(losses))


def log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    """Of the next token, [windows, tokens, vocabulary]."""
    with torch.no_grad():
        outputs = model(ids)
    logits: Tensor = getattr(outputs, "logits", outputs)
    return logits.log_softmax(-1)

"""Sentences of several lengths: padded together with their mask, and each by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

LENGTHS = (5, 2, 4, 3)
WORDS, FEATURES, CLASSES = 9, 6, 4


class PerToken(nn.Module):
    """Treats every token by itself, so that padding reaches no other position."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, FEATURES)
        self.hidden = nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(self.table(ids)))
        # Samples one after the other, as GPT-2's layers read them.
        return self.head(hidden.reshape(-1, FEATURES)).reshape(*ids.shape, -1)


def run(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return model(batch["ids"])


def positions(batch: Mapping[str, Tensor]) -> Tensor:
    return batch["mask"].bool()


def padded() -> dict[str, Tensor]:
    """One batch; padding is words, not zeros, so that it would count."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, WORDS, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return {"ids": ids, "mask": mask.long()}


def apart() -> list[dict[str, Tensor]]:
    """The same sentences, a batch each, without padding."""
    batch = padded()
    return [
        {name: values[index : index + 1, :length] for name, values in batch.items()}
        for index, length in enumerate(LENGTHS)
    ]

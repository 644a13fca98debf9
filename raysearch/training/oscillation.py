"""Weights that swing between two levels are frozen at the one where they are more often.

Source: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, section 4.3 and
algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from raysearch.errors import StorageError
from raysearch.quantizer import Quantizer, dequantize
from raysearch.training.phases import TrainedWeight

MOMENTUM = 0.01
"""Of the means over steps; the authors'."""

FIRST_OVER_LAST = 4.0
"""How many times as high the threshold begins: the authors' best fall from 0.04 to about a quarter."""


@dataclass
class Course:
    """What the codes of one weight did so far, each a tensor of its shape.

    Attributes:
        codes: after the step before.
        direction: of the last change of a code: -1, 1, or 0 where there was none.
        frequency: moving mean of whether a code turned back.
        mean: moving mean of the codes.
        frozen: which stay.
    """

    codes: Tensor
    direction: Tensor
    frequency: Tensor
    mean: Tensor
    frozen: Tensor

    @classmethod
    def beginning(cls, codes: Tensor) -> Course:
        """That of codes which have not changed yet."""
        codes = codes.float()
        zeros = torch.zeros_like(codes)
        return cls(codes, torch.zeros_like(codes, dtype=torch.int8), zeros, codes.clone(), zeros.bool())

    def follow(self, codes: Tensor, threshold: float) -> None:
        """Take in the codes after a step, and freeze where the frequency has passed the threshold.

            o = [q ≠ q′ and sign(q − q′) = −sign of the change before]
            f ← m·o + (1 − m)·f        q̄ ← m·q + (1 − m)·q̄        frozen at round(q̄) where f > threshold

        Args:
            codes: q; those of frozen weights are not read.
            threshold: of f.
        """
        codes = torch.where(self.frozen, self.codes, codes.float())
        turn = torch.sign(codes - self.codes).to(torch.int8)
        turned_back = self.direction * turn == -1
        self.frequency.mul_(1 - MOMENTUM).add_(turned_back, alpha=MOMENTUM)
        self.mean.lerp_(codes, MOMENTUM)
        self.direction = torch.where(turn != 0, turn, self.direction)
        freezes = (self.frequency > threshold) & ~self.frozen
        self.codes = torch.where(freezes, self.mean.round(), codes)
        self.frozen |= freezes


class Oscillations:
    """Follows the codes of all trained weights, step by step.

    A frozen weight is put back after every step to its code times the scale as it then is.

    Args:
        weights: with their quantizers, at the start of training.
        threshold: of the frequency at the end of training; 0: nothing is followed.
    """

    def __init__(self, weights: list[TrainedWeight], threshold: float) -> None:
        self._threshold = threshold
        self._weights = weights if threshold else []
        self._courses = {own.name: Course.beginning(_codes(own)) for own in self._weights}

    @property
    def share_frozen(self) -> float:
        """Of all weights that are followed."""
        frozen = [course.frozen for course in self._courses.values()]
        count = sum(mask.numel() for mask in frozen)
        return sum(int(mask.sum()) for mask in frozen) / count if count else 0.0

    @torch.no_grad()
    def freeze(self, share: float) -> None:
        """Follow a step, and put frozen weights to their codes.

        Args:
            share: of the training, done before the step; the threshold falls with it along a cosine.
        """
        fall = 0.5 * (1 + math.cos(math.pi * share))
        threshold = self._threshold * (1 + (FIRST_OVER_LAST - 1) * fall)
        for own in self._weights:
            course = self._courses[own.name]
            course.follow(_codes(own), threshold)
            if bool(course.frozen.any()):
                level = _level(own.quantizer, course.codes).to(own.weight.dtype)
                own.weight.copy_(torch.where(course.frozen, level, own.weight))

    def tensors(self) -> dict[str, Tensor]:
        """Weight and part of its course → tensor."""
        named: dict[str, Tensor] = {}
        for name, course in self._courses.items():
            for part in fields(course):
                named[f"{name}|{part.name}"] = getattr(course, part.name)
        return named

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave; a weight that it lacks begins its course where it is.

        Raises:
            StorageError: a weight has another shape.
        """
        for own in self._weights:
            name, course = own.name, Course.beginning(_codes(own))
            for part in fields(course):
                start = getattr(course, part.name)
                value = tensors.get(f"{name}|{part.name}", start)
                if value.shape != start.shape:
                    raise StorageError(
                        f"the course of '{name}' has shape {tuple(value.shape)} in the checkpoint, which "
                        f"belongs to another setup; start a new run."
                    )
                setattr(course, part.name, value.to(start.device, start.dtype, copy=True))
            self._courses[name] = course


def _codes(own: TrainedWeight) -> Tensor:
    with torch.no_grad():
        return own.quantizer.codes(own.weight)


def _level(quantizer: Quantizer, codes: Tensor) -> Tensor:
    """The values of codes with the scales in force."""
    form = quantizer.affine()
    return dequantize(codes, form.scale, form.zero_point, form.granularity, form.minimum)

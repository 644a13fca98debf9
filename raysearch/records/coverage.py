"""How much of a model's weights quantizers reach, and which weights stay float for what reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

ALMOST_ALL = 0.95
"""Share of the weights from which on a budget of weights speaks for the model."""

NUM_LISTED = 5


@dataclass(frozen=True)
class FloatWeight:
    """A parameter of at least two dimensions that stays float.

    Attributes:
        name: its qualified name.
        shape: its shape.
        reason: why, for people.
        is_chosen: whether the settings leave it out.
    """

    name: str
    shape: tuple[int, ...]
    reason: str
    is_chosen: bool = False

    @property
    def num_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class Coverage:
    """What of a model can be quantized. Weights are the parameters of at least two dimensions.

    Attributes:
        num_quantizable: weights that a quantizer acts on.
        quantizable_bytes: their bytes in the float model.
        num_bytes: bytes of all its parameters and buffers.
        floating: the weights that stay float.
    """

    num_quantizable: int
    quantizable_bytes: int
    num_bytes: int
    floating: tuple[FloatWeight, ...] = ()

    @property
    def num_weights(self) -> int:
        """All weights."""
        return self.num_quantizable + sum(weight.num_elements for weight in self.floating)

    def describe(self) -> str:
        """The shares as a sentence.

        Example:
            >>> Coverage(300, 1200, 1500, (FloatWeight("table", (10, 10), "read by add"),)).describe()
            '75.0% of the weights (300 of 400) and 80.0% of all bytes are quantizable; 1 tensor stays float'
        """
        weights = self.num_quantizable / max(1, self.num_weights)
        all_bytes = self.quantizable_bytes / max(1, self.num_bytes)
        text = (
            f"{weights:.1%} of the weights ({self.num_quantizable:,} of {self.num_weights:,}) and "
            f"{all_bytes:.1%} of all bytes are quantizable"
        )
        if not self.floating:
            return text
        tensors = "tensor stays" if len(self.floating) == 1 else "tensors stay"
        return f"{text}; {len(self.floating)} {tensors} float"

    def left_out(self) -> tuple[FloatWeight, ...]:
        """Weights that stay float though no setting says so, where those are more than a few; else none."""
        unasked = tuple(weight for weight in self.floating if not weight.is_chosen)
        num_unasked = sum(weight.num_elements for weight in unasked)
        return unasked if num_unasked > (1 - ALMOST_ALL) * self.num_weights else ()

    def broken_promise(self, budget: str) -> str:
        """What a budget of weights does not cover, as a sentence; "" where it is next to nothing.

        Args:
            budget: the expression, such as "avg_bits<=4".
        """
        weights = self.left_out()
        if not weights:
            return ""
        count = sum(weight.num_elements for weight in weights)
        listing = "; ".join(f"{weight.name}: {weight.reason}" for weight in weights[:NUM_LISTED])
        more = f"; and {len(weights) - NUM_LISTED} more" if len(weights) > NUM_LISTED else ""
        return (
            f"the budget {budget} is of the weights that are quantized: {count:,} of {self.num_weights:,} "
            f"({count / self.num_weights:.1%}) stay float beside it ({listing}{more}). Set a budget of size "
            f"to count them."
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Coverage:
        """Read what `as_dict` gave, and JSON made lists of.

        Raises:
            KeyError, TypeError: it is none.
        """
        entries = [FloatWeight(**{**entry, "shape": tuple(entry["shape"])}) for entry in values["floating"]]
        return cls(**{**values, "floating": tuple(entries)})

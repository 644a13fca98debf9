"""Codes of two runs compared, layer by layer: how many differ, and by how many steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from raysearch.records import LayerFlips


class FlipCounts:
    """Adds up the differing codes of every layer over batches.

    Args:
        names: layers that are listed even where nothing is added for them, in this order.

    Example:
        >>> counts = FlipCounts()
        >>> counts.add("fc.input", np.array([3, 4, 9], np.uint8), np.array([3, 5, 7], np.uint8))
        >>> counts.layers()
        (LayerFlips(name='fc.input', num_flips=2, num_codes=3, max_steps=2),)
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._layers = {name: LayerFlips(name, 0, 0, 0) for name in names}

    def add(self, name: str, codes: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
        """Compare the codes of a layer on one batch with the expected ones.

        Args:
            name: the layer.
            codes: 8-bit integers.
            expected: the same, of one shape.
        """
        # In 16 bits: the difference of two bytes does not fit a byte.
        steps = np.abs(codes.astype(np.int16) - expected)
        before = self._layers.get(name, LayerFlips(name, 0, 0, 0))
        self._layers[name] = LayerFlips(
            name,
            num_flips=before.num_flips + int(np.count_nonzero(steps)),
            num_codes=before.num_codes + steps.size,
            max_steps=max(before.max_steps, int(steps.max(initial=0))),
        )

    def layers(self) -> tuple[LayerFlips, ...]:
        """The sums, in the order in which layers were first named."""
        return tuple(self._layers.values())

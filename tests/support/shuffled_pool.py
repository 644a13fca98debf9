"""A pool that answers out of order, as a fleet does."""

from __future__ import annotations

import random
from typing import Any


class ShuffledPool:
    """Runs the units of another pool in a random order, and answers in another."""

    def __init__(self, inner: Any, seed: int) -> None:
        self._inner, self._random = inner, random.Random(seed)

    def run(self, function: Any, units: Any, shared: Any = ()) -> Any:
        keys = self._random.sample(list(units), len(units))
        answers = list(self._inner.run(function, {key: units[key] for key in keys}, shared))
        yield from self._random.sample(answers, len(answers))

    def close(self) -> None:
        self._inner.close()

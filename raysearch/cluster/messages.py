"""How many units travel in one message between the driver and a worker."""

from __future__ import annotations

import math

MESSAGES_PER_SECOND = 200.0
"""That a driver takes in with time to spare."""

MOST_IN_MESSAGE = 64


def portion(queued: int, slots: int, workers: int, unit_seconds: float, longest: float) -> int:
    """How many units travel in one message.

    So many that the driver takes in no more than `MESSAGES_PER_SECOND`, as far as the units that are left
    go round: which units go together changes no answer.

    Args:
        queued: units behind the first of the message.
        slots: messages on their way when all workers have theirs.
        workers: how many there are.
        unit_seconds: what a unit takes; 0 where none is known yet.
        longest: seconds that a message may take.

    Example:
        >>> portion(200_000, 2000, 1000, 1.0, 60.0), portion(200_000, 16, 8, 1.0, 60.0)
        (5, 1)
    """
    if not unit_seconds:
        return 1
    fair = queued // (2 * slots)
    size = min(workers / MESSAGES_PER_SECOND, longest) / unit_seconds
    return max(1, min(fair, math.ceil(size), MOST_IN_MESSAGE))

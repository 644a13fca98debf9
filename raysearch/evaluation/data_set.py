"""The data sets that a worker holds."""

from __future__ import annotations

from enum import StrEnum


class DataSet(StrEnum):
    """A data set, as messages name it; a replica's shards are keyed by it.

    A member equals its text, so `DataSet("calibration")` and "calibration" find the same shards.

    Attributes:
        CALIBRATION: ranges and second moments are measured on it, and responses where they have no other.
        RESPONSES: responses are, where they have samples of their own (`sensitivity.response_samples`).
        TRACES: traces are, where they have samples of their own (`sensitivity.trace_samples`).
        TRACE_SAMPLE: drawn by importance from the samples for traces, and cut into shards anew.
        SEARCH: measured trials are judged on it.
    """

    CALIBRATION = "calibration"
    RESPONSES = "responses"
    TRACES = "traces"
    TRACE_SAMPLE = "trace sample"
    SEARCH = "search"


def shard_name(data: DataSet, index: int) -> str:
    """What messages call one shard.

    Example:
        >>> shard_name(DataSet.SEARCH, 3)
        'shard 3 of the search data'
    """
    return f"shard {index} of the {data} data"

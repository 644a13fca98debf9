"""What the measuring of sensitivity would take is known before it is measured."""

import pytest

from raysearch.pipeline.preflight import measuring
from raysearch.sensitivity import responses
from tests.support.preflight_cases import make_task, refuse, try_task


def test_responses_that_would_not_fit_into_memory_are_refused_before_any_compute(monkeypatch):
    def refuse_to_compute(*args, **options):
        raise AssertionError("computed")

    # 10 options of 3 values: their rows on 10 calibration samples take 2,400 bytes.
    monkeypatch.setattr(measuring, "measure_traces", refuse_to_compute)
    monkeypatch.setattr(responses, "ROWS_LIMIT_BYTES", 2399)
    assert "10 options x 10 samples x 3 values of 8 bytes" in refuse(make_task())
    monkeypatch.setattr(responses, "ROWS_LIMIT_BYTES", 2**31)
    monkeypatch.setattr(responses, "MOST_DENSE", 2)
    monkeypatch.setattr(responses, "FACTOR_BYTES", 2399)
    monkeypatch.setattr(responses, "MOST_OPTIONS", 2)
    text = refuse(make_task(), calibration={"shard_size": 5})
    assert "the responses of 10 options would take" in text
    assert "with 30 values each" in text


def test_responses_that_may_not_fit_are_told(monkeypatch):
    monkeypatch.setattr(responses, "ROWS_LIMIT_BYTES", 10 * 4 * 3 * 8 - 1)
    with pytest.warns(UserWarning, match=r"fewer calibration vectors .*validation.shard_size"):
        try_task(make_task(), calibration={"shard_size": 2})

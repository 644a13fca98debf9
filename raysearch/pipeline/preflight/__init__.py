"""What would fail at the end of a run, tried at its beginning."""

from raysearch.pipeline.preflight.preflight import preflight

__all__ = ["preflight"]

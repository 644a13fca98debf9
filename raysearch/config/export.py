"""The export targets."""

from __future__ import annotations

from pydantic import Field

from raysearch.config.section import Section


class ExportConfig(Section):
    """Targets; by default all whose packages are installed, and the run says which are left out."""

    targets: tuple[str, ...] | None = None
    num_samples: int = Field(256, ge=1)

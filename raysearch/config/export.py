"""The export targets."""

from __future__ import annotations

from pydantic import Field

from raysearch.config.section import Section


class ExportConfig(Section):
    """What is written of a stripped model, and on how much data it is verified.

    Attributes:
        targets: names of `raysearch.export.TARGETS`; None is those that are written by default and whose
            packages are installed, and the manifest notes which are left out.
        num_samples: samples that every target is verified on, rounded up to whole batches.
    """

    targets: tuple[str, ...] | None = None
    num_samples: int = Field(256, ge=1)

"""The label-free objective."""

from __future__ import annotations

from typing import Literal

from raysearch.config.section import Section


class ObjectiveConfig(Section):
    """The label-free objective: how far outputs are from the float model's."""

    divergence: Literal["kl", "mse", "nmse", "cosine"] = "kl"
    class_dim: int = -1

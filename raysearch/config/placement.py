"""Where quantizers go, and which widths they may take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysearch.config.section import Section, Width


class OverrideConfig(Section):
    """What is set for the layers or quantizers of one scope; null leaves it as it is."""

    bits: Width | tuple[Width, ...] | None = None
    mode: Literal["symmetric", "asymmetric"] | None = None
    granularity: Literal["per_channel", "per_tensor"] | None = None
    signed: bool | None = None
    pinned: Width | None = None


class PlacementConfig(Section):
    """Where quantizers go and which widths they may take."""

    weight_bit_widths: tuple[Width, ...] = Field((2, 3, 4, 8), min_length=1)
    activation_bit_widths: tuple[Width, ...] = Field((8,), min_length=1)
    pins: dict[str, Width] = Field(default_factory=dict)
    target_scopes: tuple[str, ...] = ()
    ignored_scopes: tuple[str, ...] = ()
    overrides: dict[str, OverrideConfig] = Field(default_factory=dict)
    profile: str = "any"

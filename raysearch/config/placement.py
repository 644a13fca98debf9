"""Where quantizers go, and which widths they may take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raysearch.config.section import Section, Width


class OverrideConfig(Section):
    """What is set for the layers or quantizers of one scope; null leaves it as it is."""

    bits: Width | Annotated[tuple[Width, ...], Field(min_length=1)] | None = None
    mode: Literal["symmetric", "asymmetric"] | None = None
    granularity: Literal["per_channel", "per_tensor"] | None = None
    signed: bool | None = None
    pinned: Width | None = None

    @property
    def widths(self) -> tuple[int, ...] | None:
        """The widths that are left, ascending; None: those that it would have without."""
        if self.pinned is not None:
            return (self.pinned,)
        if self.bits is None:
            return None
        several = (self.bits,) if isinstance(self.bits, int) else self.bits
        return tuple(sorted(set(several)))


class PlacementConfig(Section):
    """Where quantizers go, and which widths they may take.

    Without activation widths, weights alone are quantized.
    """

    weight_bit_widths: tuple[Width, ...] = Field((2, 3, 4, 8), min_length=1)
    activation_bit_widths: tuple[Width, ...] = (8,)
    pins: dict[str, Width] = Field(default_factory=dict)
    target_scopes: tuple[str, ...] = ()
    ignored_scopes: tuple[str, ...] = ()
    overrides: dict[str, OverrideConfig] = Field(default_factory=dict)
    profile: str = "any"
